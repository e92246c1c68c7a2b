"""A server with OpenAI's protocol on a real socket, whose answers a test scripts."""

import contextlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Reply(Exception):
    """Raised to answer with another status than 200, or with a body outside of OpenAI's schema."""

    def __init__(self, status, headers=(), text="no"):
        super().__init__(status)
        self.status, self.headers, self.text = status, dict(headers), text


def chat(text, finish="stop", tokens=(10, 5)):
    """A response of /chat/completions."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return {"choices": [{**choice, "finish_reason": finish}], "usage": usage}


def echoed(prompt, word_logprob, tokens=(10, 1)):
    """A response of /completions that echoes a prompt; words are tokens, and `!` is generated.

    Args:
        word_logprob: called with a word and the prompt.
    """
    words = [*re.findall(r"\s*\S+", prompt), "!"]
    logprobs = [None, *(word_logprob(word.strip(), prompt) for word in words[1:])]
    echo = {"tokens": words, "token_logprobs": logprobs}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    choice = {"index": 0, "text": prompt + "!", "finish_reason": "length", "logprobs": echo}
    return {"choices": [choice], "usage": usage}


class Endpoint:
    """A server that runs inside its `with` block.

    Args:
        answer: called with route and body; returns the response's JSON, or raises a `Reply`.
            Several threads call it at once.
    """

    def __init__(self, answer):
        self.answer = answer
        self.calls = []  # (route, body as text), in order of arrival
        self.headers = []

    def __enter__(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                route = self.path.removeprefix("/v1/")
                endpoint.calls.append((route, body))
                endpoint.headers.append(dict(self.headers))
                try:
                    reply = Reply(200, text=json.dumps(endpoint.answer(route, json.loads(body))))
                except Reply as other:
                    reply = other
                content = reply.text.encode()
                with contextlib.suppress(ConnectionError):  # the client was killed
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def request_counts(self):
        """How often each (route, body) was requested."""
        return Counter(self.calls)


def embeddings(encoder, tokens=lambda text: len(text.split())):
    """Answers of /embeddings with an encoder's vectors of passages.

    Clients must cope with what is odd about them: they are three times as long as unit vectors,
    and in reverse order.
    """

    def answer(route, body):
        assert route == "embeddings"
        vectors = 3 * encoder.encode(body["input"], "passage")
        rows = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        usage = {"prompt_tokens": sum(tokens(text) for text in body["input"])}
        return {"data": rows[::-1], "usage": usage}

    return answer
