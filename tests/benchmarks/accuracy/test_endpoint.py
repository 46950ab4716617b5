"""The client, the sweep and the command line, against a server with prepared answers."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.accuracy import measure, synthetic
from benchmarks.accuracy.endpoint import Answer, Endpoint, open_session
from benchmarks.accuracy.methods import UNCOMPRESSED, Setting
from benchmarks.accuracy.questions import Question, read_questions
from benchmarks.accuracy.selection import OWN, RANDOM_KEEP, UNIFORM_POOLING, says_in_log
from benchmarks.accuracy.sweep import points, sweep

DESCRIPTION = {
    "supported": True,
    "num_layers": 8,
    "boundaries": [2, 4, 6],
    "visual_tokens_per_image": 144,
    "limits": {"max_reduction": 0.97},
}


class StandIn(ThreadingHTTPServer):
    """Answers with the picture's bytes in capitals; under compression, with ``sorry`` for every second question."""

    def __init__(self, description=DESCRIPTION):
        super().__init__(("127.0.0.1", 0), Handler)
        self.description = description
        self.bodies = []
        self.refuses = False
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body):
        picture, text = body["messages"][0]["content"]
        said = base64.b64decode(picture["image_url"]["url"].partition(",")[2]).decode().upper()
        compression = body.get("compression", "off")
        is_off = compression == "off"
        right = is_off or int(text["text"].split()[-1]) % 2 == 0
        usage = {"visual_tokens": {"layer_average": 144.0 if is_off else 10.0}, "reduction": 0.0 if is_off else 0.9306}
        return {
            "choices": [{"message": {"content": f" {said}\n" if right else "sorry"}}],
            "usage": {"completion_tokens": len(said), **({"compression": usage} if self.description else {})},
        }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/v1/models":
            self.reply(200, {"data": [{"id": "stand-in"}]})
        else:
            self.reply(200 if self.server.description else 404, self.server.description)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        time.sleep(0.005)
        with self.server.lock:
            self.server.in_flight -= 1
        self.reply(*((400, {"error": "no such setting"}) if self.server.refuses else (200, self.server.answer(body))))

    def reply(self, status, content):
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(request):
    with StandIn(*getattr(request, "param", ())) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def questions(tmp_path):
    """Eight questions of two types, numbered in their texts; also in a file."""
    rows = []
    for number in range(8):
        answer = "red" if number < 4 else "blue"
        (tmp_path / f"{number}.jpg").write_text(answer)
        kind = "color" if number % 4 < 2 else "place"
        rows.append(
            {"id": str(number), "image": f"{number}.jpg", "type": kind, "question": f"? {number}", "answer": answer}
        )
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    return read_questions(tmp_path / "questions.json")


async def test_answers_are_in_order_and_report_their_tokens(server, questions):
    async with open_session(server.url, "key") as session:
        endpoint = await Endpoint.connect(session, concurrency=3)
        answers, seconds = await endpoint.ask(questions, {"visual_tokens": 10})
    assert answers[:2] == [Answer("RED".join(" \n"), 3, 10.0, 0.9306), Answer("sorry", 3, 10.0, 0.9306)]
    assert answers[6].text == " BLUE\n"
    assert seconds > 0
    assert server.most_in_flight == 3
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("stand-in", 0, 48)
    assert body["compression"] == {"visual_tokens": 10}
    assert endpoint.description == DESCRIPTION


async def test_a_refused_request_raises(server, questions):
    server.refuses = True
    async with open_session(server.url, None) as session:
        endpoint = await Endpoint.connect(session, concurrency=2)
        with pytest.raises(RuntimeError, match=r"/v1/chat/completions: 400 .*no such setting"):
            await endpoint.ask(questions, "off")


@pytest.mark.parametrize("server", [({},)], indirect=True, ids=["plain vLLM"])
async def test_servers_without_compression_are_asked_without_the_field(server, questions):
    async with open_session(f"{server.url}/", None) as session:
        endpoint = await Endpoint.connect(session, concurrency=2)
        assert not endpoint.has_compression
        answers, _ = await endpoint.ask(questions[:1], "off")
    assert answers == [Answer(" RED\n", 3)]
    assert "compression" not in server.bodies[0]


async def test_settings_answer_blocks_in_turn(server, questions):
    settings = [UNCOMPRESSED, Setting("DUET", 0.07, {"visual_tokens": 10})]
    async with open_session(server.url, None) as session:
        endpoint = await Endpoint.connect(session, concurrency=1)
        measured = await sweep(endpoint, questions, settings, num_blocks=2, num_warmup=2, seed=0)
    order = ["off" if body["compression"] == "off" else "duet" for body in server.bodies]
    assert order[:4] == ["off"] * 2 + ["duet"] * 2  # the warm-up
    assert order[4:] == ["off"] * 4 + ["duet"] * 8 + ["off"] * 4
    off, duet = points(questions, measured)
    assert (off["accuracy"]["mean"], duet["accuracy"]["mean"]) == (1.0, 0.5)
    assert (off["gain"], duet["layer_average"], duet["reduction"]) == (1.0, 10.0, pytest.approx(0.9306))
    assert (off["answer_tokens"], duet["answer_tokens"]) == (3.5, 3.5)
    gains = [a / b for a, b in zip(measured[0].seconds, measured[1].seconds, strict=True)]
    assert (duet["gain"], duet["gain_range"]) == (sum(gains) / 2, (min(gains), max(gains)))
    assert duet["compression"] == {"visual_tokens": 10}


def test_a_whole_run_against_a_running_endpoint(server, questions, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out" / "result.json"
    words = ["--base-url", server.url, "--questions", str(tmp_path / "questions.json"), "--output", str(out)]
    with pytest.raises(SystemExit) as end:
        synthetic.main([*words, "--shares", "0.33", "0.07", "--blocks", "2", "--concurrency", "4"])
    assert end.value.code == 0
    figures = json.loads(out.read_text())["figures"]
    visit = figures["checkpoints"]["endpoint"]
    assert figures["one_answer"]["answers"] == {"color": "blue", "place": "blue"}
    assert [point["method"] for point in visit["points"]].count("DUET, salient") == 2
    assert {point["kept"] for point in visit["points"]} == {1.0, 0.5}
    assert {point["lead"]["mean"] for point in visit["points"] if point["lead"]} == {0.0}
    assert "scores" not in visit["points"][0]
    assert len(visit["left_out"]) == 2
    assert "| DUET, all | 7% | 10.0 | 3.5 |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_more_tokens_than_the_budget_is_a_failure():
    point = {"method": "DUET, all", "share": 0.07, "layer_average": 10.081}
    visit = {"num_patches": 144, "points": [point, point | {"layer_average": 10.08}, point | {"layer_average": None}]}
    assert synthetic.over_budget(visit) == []
    visit["points"].append(point | {"layer_average": 10.1})
    assert synthetic.over_budget(visit) == ["DUET, all at 7% used 10.1 visual tokens"]


@pytest.mark.parametrize("says", [True, False], ids=["taken", "passed over"])
def test_every_checkpoint_is_visited_with_every_selection(monkeypatch, server, questions, tmp_path, says):
    started = []

    class Running:
        def __init__(self, command, log, **environment):
            selection = environment["VLLM_PLUGINS"].removeprefix("duet,")
            started.append((selection, command))
            with log.open("a") as file:
                file.write(f"{says_in_log(selection)}\n" if says else "\n")

        def __enter__(self):
            return server.url

        def __exit__(self, *error):
            pass

    (tmp_path / "model").mkdir()
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 8}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(measure, "running_process", Running)
    args = synthetic.parse_args(
        ["--serve", f"compressed={tmp_path / 'model'}", "--shares", "0.07", "--concurrency", "4"]
    )
    (_, checkpoint), log = args.serve[0], tmp_path / "log"
    if not says:
        with pytest.raises(RuntimeError, match="does not use duet_random_keep for stage 1"):
            measure.measure_checkpoint(args, checkpoint, questions, log)
        return
    visit = measure.measure_checkpoint(args, checkpoint, questions, log)
    assert [selection for selection, _ in started] == [OWN, RANDOM_KEEP, UNIFORM_POOLING]
    command = started[0][1]
    assert command[command.index("--duet-boundaries") + 1] == "2,4,6"
    assert [(p["selection"], p["method"]) for p in visit["points"] if p["selection"] != OWN] == [
        (RANDOM_KEEP, "off"),
        (RANDOM_KEEP, "random keep"),
        (UNIFORM_POOLING, "off"),
        (UNIFORM_POOLING, "uniform pooling"),
    ]


def test_checkpoints_have_names_and_shares_are_shares(capsys):
    args = synthetic.parse_args(["--serve", "a=/x/y", "--serve", "/x/z"])
    assert args.serve == [("a", "/x/y"), ("z", "/x/z")]
    with pytest.raises(SystemExit):
        synthetic.parse_args(["--base-url", "http://h", "--shares", "1"])
    assert "share is 1, expected a number between 0 and 1" in capsys.readouterr().err


def test_one_failing_checkpoint_keeps_the_results_of_the_others(monkeypatch, questions, tmp_path):
    def visit(args, checkpoint, questions, log):
        if checkpoint == "bad":
            raise RuntimeError("the server did not start")
        return {"points": [], "num_patches": 144, "left_out": []}

    monkeypatch.setattr(synthetic, "measure_checkpoint", visit)
    path = str(tmp_path / "questions.json")
    args = synthetic.parse_args(["--serve", "a=bad", "--serve", "b=good", "--questions", path])
    figures, failures = synthetic.check(args, tmp_path / "log")
    assert (list(figures["checkpoints"]), failures) == (["b"], ["a: the server did not start"])


def test_questions_are_drawn_if_no_file_is_named(tmp_path):
    args = synthetic.parse_args(["--base-url", "http://h", "--per-type", "1", "--seed", "3"])
    drawn = synthetic.held_out(args, tmp_path)
    assert len({question.type for question in drawn}) == len(drawn) == 7
    assert isinstance(drawn[0], Question)
    assert drawn[0].image.read_bytes()
