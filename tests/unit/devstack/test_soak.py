# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from rich.console import Console

from devstack.cluster import Memory
from devstack.soak import LOADS, Soak, main, report

HELD = {"scheduler": Memory(rss=200 * 2**20, pss=100 * 2**20, processes=2)}
DONE = Soak(images=10, seconds=20.0, billed=10, twice=(), stored=10, start=HELD, peak=HELD, end=HELD)


def test_a_soak_is_complete_when_each_image_is_paid_once_and_saved():
    assert DONE.complete


@pytest.mark.parametrize(
    "changes",
    [{"billed": 9}, {"billed": 11}, {"twice": ("a fox",)}, {"stored": 9}, {"stored": 11}],
    ids=["one not paid", "one too many", "one paid twice", "one not saved", "one too many saved"],
)
def test_a_soak_is_not_complete(changes):
    assert not replace(DONE, **changes).complete


def test_the_report_tells_rate_bills_and_memory():
    console = Console(width=120)
    with console.capture() as capture:
        report(DONE, console)
    assert "10 images in 20 s (0.50 a second): 10 billed, 0 of them twice, 10 saved." in capture.get()
    assert capture.get().count("100 ") >= 3


@pytest.mark.parametrize("dag_id", LOADS)
def test_each_load_asks_for_so_many_images_each_with_a_prompt_of_its_own(dag_id):
    conf = LOADS[dag_id](7)
    # The batch makes a prompt of each article's number.
    asked = range(conf["articles"]) if "articles" in conf else conf["subjects"]
    assert len(set(asked)) == 7


def test_a_dag_that_is_not_known_needs_its_conf(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak", "--dag", "mine"])
    with pytest.raises(SystemExit):
        main()
    assert "--dag mine needs --conf" in capsys.readouterr().err
