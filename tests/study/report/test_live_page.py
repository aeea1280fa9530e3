"""The served report: on the loopback alone, only that page, and what the records hold now."""

import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPConnection

import pytest

from cdgrad.commands import report
from cdgrad.study import StudyError
from cdgrad.study.records import Store
from cdgrad.study.report import live_page

ENTRY = """
import time

def run(seed, arm):
    arm.attached = True
    time.sleep(0.1 * seed)
    return {"error": 10 + seed}
"""


@pytest.fixture
def study(tmp_path, finished):
    return finished(tmp_path, directed=2.0)


def get(address, path="/", **headers):
    connection = HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_the_page_is_the_report_and_follows_the_records(study, tiny, make_run, no_figures):
    with live_page.served(study) as address:
        assert address.startswith("http://127.0.0.1:")
        status, before, headers = get(address)
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert "<h1>Tiny</h1>" in before
        assert get(address)[1] == before
        with Store(study, write=True) as store:
            store.add(make_run("sgd", 0, 77.25), store.use_spec("tiny", tiny.text))
        assert "77.25" not in before
        assert "77.25" in get(address)[1]
    with pytest.raises(OSError, match=r"refused|Connection"):
        urllib.request.urlopen(address, timeout=5)


def test_no_other_file_is_served_and_no_other_name_of_the_machine_answers(study):
    (study / "secret.txt").write_text("secret")
    with live_page.served(study) as address:
        for path in ("/secret.txt", "/study.sqlite", "/../secret.txt", "/%2e%2e/etc/passwd", "/?x"):
            status, text, _ = get(address, path)
            assert status == 404, path
            assert "secret" not in text.replace(path, "")
        assert get(address, Host="evil.example")[0] == 403


def test_the_scripts_hash_is_in_the_policy_and_nothing_is_loaded(study):
    page = live_page.page(study)
    assert page.count("<script>") == 1
    assert live_page._SCRIPT in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_before_the_first_run_the_page_says_what_is_missing(tmp_path):
    assert "holds no study" in live_page.page(tmp_path)
    with pytest.raises(StudyError, match="holds no study"):
        report.watch(tmp_path, live_page.Asked())


def test_the_page_shows_the_comparisons_that_are_asked_for(study, no_figures):
    assert "Paired difference to sgd" in live_page.page(study)
    assert "Paired difference to directed" in live_page.page(study, live_page.Asked(reference="directed"))
    assert "Paired differences of all pairs" in live_page.page(study, live_page.Asked(all_pairs=True))
    assert "Time to a validation error of 3.5" in live_page.page(study, live_page.Asked(target=3.5))


def test_a_mistyped_arm_is_an_error_and_no_page(study):
    with pytest.raises(StudyError, match="tiny has no arm 'sobolev'; it has sgd, directed"):
        report.watch(study, live_page.Asked(reference="sobolev"))


def test_study_serve_shows_the_runs_so_far(tmp_path):
    (tmp_path / "slow.py").write_text(ENTRY)
    (tmp_path / "slow.toml").write_text(
        'baseline = "a"\nseeds = 5\nworkers = 1\nentry = "slow:run"\narms.a = {}\narms.b = {}\n'
    )
    command = [sys.executable, "-m", "cdgrad", "study", "slow.toml", "--out", "out", "--serve"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://\S+", process.stderr.readline())
        threading.Thread(target=process.stderr.read, daemon=True).start()
        texts = set()
        while process.poll() is None:
            with suppress(OSError):
                texts.add(get(address[0])[1])
            time.sleep(0.3)
    assert process.returncode == 0
    assert any(" of 10 runs" in text for text in texts), [text[-300:] for text in texts]


def test_report_watch_serves_until_it_is_interrupted(study):
    command = [sys.executable, "-m", "cdgrad", "report", str(study), "--watch", "--reference", "directed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        text = get(address)[1]
        assert "<h1>Tiny</h1>" in text
        assert "Paired difference to directed" in text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert not (study / "report.html").exists()
