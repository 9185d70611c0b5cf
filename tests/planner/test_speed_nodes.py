"""Speed over several nodes: what the slower of link and network costs, and who said what the network is."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qlora_planner.catalog.gpus import GpuCatalogue
from qlora_planner.catalog.gpus.several import nodes_of
from qlora_planner.catalog.links import machine_of, parse_network
from qlora_planner.errors import InputError
from qlora_planner.report.parts.labels import cards_line
from qlora_planner.session import Session
from qlora_planner.spec.run import RunConfig
from qlora_planner.speed.several import ring_bytes_per_s

FOLDER = Path(__file__).parents[2] / "profiles" / "gpus"
H200, RTX = (GpuCatalogue([FOLDER]).get(name) for name in ("h200", "rtx-4090"))
MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(stored_only=True)


def step_s(session: Session, card: str, **more: object) -> float:
    run = RunConfig(optimizer="adamw_torch_fused", padding=False, **more)  # type: ignore[arg-type]
    seconds = session.on(card).open(MODEL).estimate(run).speed.step_s
    assert seconds is not None
    return seconds


@pytest.mark.parametrize(
    ("text", "kind", "bytes_per_s"),
    [
        ("100Gb", "100Gb", 12_500_000_000), ("8x400Gb", "8x400Gb", 400_000_000_000),
        ("3.2Tb", "3200Gb", 400_000_000_000), ("25 Gbps", "25Gb", 3_125_000_000), ("10GbE", "10Gb", 1_250_000_000),
        ("2 x 200 gbit/s", "2x200Gb", 50_000_000_000),
    ],
)  # fmt: skip
def test_a_network_is_written_in_bits_as_people_write_it(text: str, kind: str, bytes_per_s: int) -> None:
    network = parse_network(text)
    assert (network.kind, network.bytes_per_s, network.assumed) == (kind, bytes_per_s, False)
    assert parse_network(network.kind) == network


@pytest.mark.parametrize("text", ["100GB", "100", "fast", "0Gb", "0x100Gb", "-1Gb", "infiniband", ""])
def test_what_is_no_rate_in_bits_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(InputError, match="write bits a second, as 100Gb, or 8x400Gb"):
        parse_network(text)


@pytest.mark.parametrize(
    ("count", "nodes", "network", "gigabytes_per_s"),
    [(8, 1, None, 450), (8, 2, "100Gb", 12.5), (8, 2, "8x800Gb", 450), (1, 2, "400Gb", 50), (8, 2, None, 400)],
)  # fmt: skip
def test_the_slower_of_link_and_network_sets_the_pace(
    count: int, nodes: int, network: str | None, gigabytes_per_s: float
) -> None:
    named = None if network is None else parse_network(network)
    rate = ring_bytes_per_s(machine_of(H200, count, nodes, named))
    assert rate == pytest.approx(gigabytes_per_s * 1e9 * 215 / 450)


def test_a_sum_over_two_nodes_takes_what_a_ring_of_two_takes(session: Session) -> None:
    # 41,943,040 trained parameters in bfloat16: each rank sends 83,886,080 bytes, at 0.478 GB/s of 1.
    alone = step_s(session, "h200")
    over = step_s(session, "1xh200 --nodes 2 --node-network 8Gb", parallel="ddp")
    assert over - alone == pytest.approx(0.1756, rel=1e-3)


def test_gathered_weights_feel_a_slow_network_far_more_than_gradients_do(session: Session) -> None:
    slow, fast = "8xh200 --nodes 2 --node-network 100Gb", "8xh200 --nodes 2 --node-network 8x400Gb"
    ddp = step_s(session, slow, parallel="ddp") - step_s(session, fast, parallel="ddp")
    fsdp2 = step_s(session, slow, parallel="fsdp2") - step_s(session, fast, parallel="fsdp2")
    assert 0 < 20 * ddp < fsdp2


def test_an_answer_says_who_named_the_network() -> None:
    assert "an adapter a card is assumed, --node-network says otherwise" in cards_line(machine_of(H200, 8, 2), "ddp")
    said = cards_line(machine_of(RTX, 8, 2, parse_network("100Gb")), "ddp")
    assert "between nodes over 100Gb (12.5 GB/s each way)" in said and "assumed" not in said
    assert "between nodes unknown: speed needs --node-network" in cards_line(machine_of(RTX, 8, 2), "ddp")
    assert machine_of(H200, 8).to_dict().keys() == {"nodes", "gpus_per_node", "link"}


def test_a_plan_keeps_the_network_that_was_named(session: Session) -> None:
    bench = session.on("2xh200", nodes=2, node_network="2x100Gb")
    document = bench.plan(MODEL, RunConfig(seq_len=1024, parallel="ddp")).to_dict()
    assert document["gpu"]["node_network"] == "2x100Gb"
    assert bench.card.asked == "2xh200 --nodes 2 --node-network 2x100Gb"
    assert shlex.join(nodes_of(bench.card.asked).words) == "--gpu 2xh200 --nodes 2 --node-network 2x100Gb"
    assert session.on(bench.card.asked).card == bench.card


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ("8xh200 --node-network 100Gb", "is what nodes talk over, and there is one"),
        ("8xh200 --nodes two", "is no number of machines"),
        ("8xh200 --nodes 2 --nodes 3", "is given twice"),
    ],
)
def test_a_card_with_options_that_mean_nothing_is_refused(session: Session, card: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        session.on(card)


def test_a_pipeline_does_not_leave_its_node(session: Session) -> None:
    with pytest.raises(InputError, match="one process, which reaches the cards of one node"):
        step_s(session, "2xh200 --nodes 2", parallel="pipeline")
