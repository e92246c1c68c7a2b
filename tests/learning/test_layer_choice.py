"""Which layers a smaller student keeps: the search, and the subset that a base really needs."""

import itertools

import pytest
import torch

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.errors import UserError
from stillroom.learning.layer_choice import choose_layers, search_layers
from support.tiny_models import training_texts


def test_few_subsets_are_all_tried_and_the_best_is_kept():
    choice = search_layers(6, 3, lambda layers: -abs(sum(layers) - 9.5) - 0.1 * layers[0])
    assert list(choice.tried) == [*itertools.combinations(range(6), 3)]
    assert len(choice.tried) == 20
    assert choice.layers == max(choice.tried, key=choice.tried.__getitem__)


def test_of_many_layers_one_is_left_out_at_a_time():
    worth = [5, 1, 4, 0, 9, 2, 8, 3, 7, 6, 11, 10]
    choice = search_layers(12, 3, lambda layers: sum(worth[number] for number in layers))
    assert choice.layers == (4, 10, 11)
    assert len(choice.tried) == sum(range(4, 13))  # 72 forwards


@pytest.mark.parametrize("count", [1, 6])
def test_of_equal_subsets_the_first_is_kept(count):
    choice = search_layers(6, count, lambda layers: 0.0)
    assert choice.layers == tuple(range(count))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return "random:bert:layers=4,hidden=32,heads=2"


def student(base, layers=None):
    options = ContractOptions(pooling="mean", precision="float32")
    return create_encoder(base, space="s", options=options, resize=Resize(layers=layers)).eval()


def test_the_layers_that_made_the_teacher_s_vectors_are_found(base):
    words = " ".join(training_texts()).split()
    texts = [" ".join(words[i : i + 5]) for i in range(0, 2000, 5)]
    whole = student(base)
    # Layers of random weights hardly change a state: make each of these do so.
    for layer in whole.backbone.encoder.layer:
        for weight in layer.parameters():
            if weight.ndim == 2:
                weight.data *= 8
    teacher = whole
    kept = torch.nn.ModuleList(teacher.backbone.encoder.layer[number] for number in (1, 3))
    all_layers, teacher.backbone.encoder.layer = teacher.backbone.encoder.layer, kept
    vectors = torch.from_numpy(teacher.encode(texts, "passage"))
    whole.backbone.encoder.layer = all_layers
    tokens = whole.prompter(texts, "passage")
    weights = {name: weight.clone() for name, weight in whole.state_dict().items()}
    choice = choose_layers(whole, tokens, vectors.__getitem__, 2)
    assert choice.layers == (1, 3)
    assert len(choice.tried) == 6
    assert choice == choose_layers(whole, tokens, vectors.__getitem__, 2), "not by chance"
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, weights[name]), "the encoder is not changed"


def test_more_layers_than_the_base_has_are_refused(base):
    encoder = student(base)
    tokens = encoder.prompter(["a", "b"], "passage")
    with pytest.raises(UserError, match=r"student.layers: 5 is more than the base's 4 layers"):
        choose_layers(encoder, tokens, torch.randn(2, 8).__getitem__, 5)
