"""Distillation by sentence-transformers: its trainer, with MSELoss on a teacher's vectors."""

import tempfile
import time

import pyarrow as pa
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MSELoss
from sentence_transformers.models import Dense
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from stillroom.encoders.layers.backbone import set_dropout
from stillroom.encoders.model_names import locate_model


def train_with_sentence_transformers(
    encoder, base, layers, dropout, texts, vectors_nd, phase, *, device, seed
):
    """Trains a student (some of the base's layers and a projection), and copies its weights into
    `encoder`, which has the same shape.

    Args:
        texts: in the order of training, phase.global_batch per step.
        vectors_nd: the teacher's, float32.

    Returns:
        Seconds from the start of the first step to the end of the last.
    """
    torch.manual_seed(seed)
    base_model = SentenceTransformer(str(locate_model(base)), device=device)
    transformer, pooling = base_model[0], base_model[1]
    transformer.max_seq_length = phase.passage_tokens
    kept_layers = [transformer.auto_model.encoder.layer[i] for i in layers]
    transformer.auto_model.encoder.layer = torch.nn.ModuleList(kept_layers)
    set_dropout(transformer.auto_model, dropout)
    linear = encoder.projection.linear
    width, dims = linear.in_features, linear.out_features
    dense = Dense(width, dims, bias=False, activation_function=torch.nn.Identity())
    model = SentenceTransformer(modules=[transformer, pooling, dense], device=device)
    clock = Clock()
    flat = pa.array(vectors_nd.numpy().ravel())
    table = pa.table({"text": texts, "label": pa.FixedSizeListArray.from_arrays(flat, dims)})
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=phase.steps,
                per_device_train_batch_size=phase.global_batch,
                learning_rate=phase.learning_rate,
                warmup_steps=round(phase.warmup_ratio * phase.steps),
                weight_decay=phase.weight_decay,
                max_grad_norm=phase.max_grad_norm,
                bf16=encoder.contract.precision == "bfloat16",
                seed=seed,
                report_to=[],
                logging_strategy="no",
                save_strategy="no",
                use_cpu=device == "cpu",
                disable_tqdm=True,
            ),
            train_dataset=Dataset(table),
            loss=MSELoss(model),
            callbacks=[clock],
        )
        trainer.get_train_dataloader = in_order(trainer, phase.global_batch)
        trainer.train()
    encoder.backbone.load_state_dict(transformer.auto_model.state_dict())
    encoder.projection.linear.load_state_dict({"weight": dense.linear.weight.detach().float()})
    return clock.ended - clock.started


class Clock(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.ended = time.perf_counter()


def in_order(trainer, batch):
    """The trainer's data loader, without shuffling."""
    return lambda: trainer.accelerator.prepare(
        DataLoader(trainer.train_dataset, batch, collate_fn=trainer.data_collator, drop_last=True)
    )
