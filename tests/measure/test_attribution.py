"""Events of an invented step, in order, and what must be said of them."""

from __future__ import annotations

from qlora_planner.measure.events import ALLOC, FREE, OOM, SEGMENT, MemoryEvent, from_cuda_trace
from qlora_planner.measure.meters.attribution import components_at, highest_moment
from qlora_planner.measure.meters.timeline import Timeline

WORKSPACE = 32 << 20


class Story:
    """Marks and events on one invented clock: each call takes one tick."""

    def __init__(self) -> None:
        self.now = 0
        self.events: list[MemoryEvent] = []
        self.timeline = Timeline()

    def stage(self, name: str) -> None:
        self.now += 1
        self.timeline.stages.append((self.now, name))

    def own(self, owners: dict[int, str]) -> None:
        self.now += 1
        self.timeline.owners.append((self.now, owners))

    def event(self, kind: str, address: int, size: int) -> None:
        self.now += 1
        self.events.append(MemoryEvent(self.now, kind, address, size))

    def alloc(self, address: int, size: int) -> None:
        self.event(ALLOC, address, size)

    def free(self, address: int) -> None:
        self.event(FREE, address, 0)

    def components(self, *, checkpoint_every: int | None = 1) -> dict[str, int]:
        moment = highest_moment(self.events, self.timeline)
        assert moment is not None
        return components_at(moment, self.timeline, checkpoint_every=checkpoint_every, workspace_bytes=WORKSPACE)


def loaded() -> Story:
    """A model of 100 and 10 bytes, adapters of 5."""
    story = Story()
    story.stage("load")
    story.alloc(1, 100)
    story.alloc(2, 10)
    story.own({1: "quantized_weights", 2: "unquantized_weights"})
    story.stage("adapters")
    story.alloc(3, 5)
    story.own({1: "quantized_weights", 2: "unquantized_weights", 3: "adapters"})
    return story


def forward(story: Story) -> None:
    """Embedding and two layers: 7 bytes stay from the embedding, 8 from the first layer, 9 from the second."""
    story.stage("forward")
    story.alloc(10, 7)
    story.stage("layer")
    story.alloc(11, 40)
    story.free(11)
    story.alloc(12, 8)
    story.stage("layer")
    story.alloc(13, 9)
    story.stage("head")


def finish(story: Story) -> None:
    for address in (10, 12, 13, 20, 21, 30):
        story.free(address)


def test_a_peak_in_the_head() -> None:
    story = loaded()
    forward(story)
    story.alloc(20, 500)
    story.free(20)
    story.stage("backward")
    finish(story)
    assert story.components() == {
        "quantized_weights": 100, "unquantized_weights": 10, "adapters": 5, "checkpoints": 24, "logits_and_loss": 500,
    }  # fmt: skip


def test_without_checkpointing_what_layers_keep_are_activations() -> None:
    story = loaded()
    forward(story)
    story.alloc(20, 500)
    story.free(20)
    finish(story)
    found = story.components(checkpoint_every=None)
    assert (found["activations"], found.get("checkpoints")) == (24, None)


def test_what_a_layer_keeps_that_is_not_checkpointed_is_activations() -> None:
    story = loaded()
    forward(story)
    story.alloc(20, 500)
    story.free(20)
    finish(story)
    found = story.components(checkpoint_every=2)
    assert (found["activations"], found["checkpoints"]) == (9, 7 + 8)


def test_a_peak_in_the_backward_of_a_layer() -> None:
    story = loaded()
    forward(story)
    story.alloc(20, 50)
    story.free(20)
    story.stage("backward")
    story.free(13)
    story.stage("layer")  # recomputed
    story.alloc(21, 300)
    story.alloc(30, 5)  # a gradient
    story.free(21)
    story.stage("forward")  # what comes after backward
    story.own({30: "gradients"})
    story.stage("optimizer")
    finish(story)
    found = story.components()
    assert (found["activations"], found["gradients"], found["checkpoints"]) == (300, 5, 15)
    assert "logits_and_loss" not in found


def test_a_temporary_of_the_layer_at_hand_is_no_checkpoint() -> None:
    story = loaded()
    story.stage("forward")
    story.stage("layer")
    story.alloc(12, 8)
    story.stage("layer")
    story.alloc(13, 900)
    story.free(13)
    story.stage("head")
    story.stage("backward")
    story.free(12)
    found = story.components()
    assert (found["activations"], found["checkpoints"]) == (900, 8)


def test_workspaces_and_what_nobody_owns() -> None:
    story = loaded()
    story.stage("forward")
    story.stage("layer")
    story.alloc(40, WORKSPACE)
    story.alloc(41, 64)
    story.stage("head")
    found = story.components()
    assert (found["workspace"], found["unattributed"]) == (WORKSPACE, 64)


def test_an_address_that_is_used_again_has_a_new_owner() -> None:
    story = loaded()
    forward(story)
    story.alloc(50, 5)
    story.own({50: "gradients"})
    story.free(50)
    story.alloc(50, 700)
    story.free(50)
    finish(story)
    found = story.components()
    assert found["logits_and_loss"] == 700 and "gradients" not in found


def test_a_peak_before_training_is_a_tensor_beside_its_cast() -> None:
    story = Story()
    story.stage("load")
    story.alloc(1, 100)
    story.alloc(2, 400)
    story.free(2)
    story.own({1: "quantized_weights"})
    story.stage("adapters")
    assert story.components() == {"quantized_weights": 100, "workspace": 400}


def test_a_failed_request_is_the_moment_whatever_was_higher_before() -> None:
    story = loaded()
    story.alloc(4, 5000)
    story.free(4)
    story.stage("forward")
    story.event(OOM, 0, 10_000)
    story.free(1)
    assert sum(story.components().values()) == 115


def test_slack_is_what_is_reserved_beyond_blocks() -> None:
    story = Story()
    story.stage("load")
    story.event(SEGMENT, 0, 2000)
    story.alloc(1, 1200)
    story.own({1: "quantized_weights"})
    story.event(SEGMENT, 9000, 5000)  # after the peak
    assert story.components() == {"quantized_weights": 1200, "allocator_slack": 800}


def test_without_layers_nothing_is_guessed() -> None:
    story = loaded()
    story.stage("forward")
    story.alloc(20, 77)
    story.stage("backward")
    story.free(20)
    assert story.components()["unattributed"] == 77


def test_no_events_no_moment() -> None:
    assert highest_moment([], Timeline()) is None


def test_cuda_entries_count_blocks() -> None:
    entries = [
        {"action": "segment_alloc", "addr": 0, "size": 2 << 20, "time_us": 1},
        {"action": "alloc", "addr": 0, "size": 513, "time_us": 2},
        {"action": "free_requested", "addr": 0, "size": 513, "time_us": 3},
        {"action": "free_completed", "addr": 0, "size": 513, "time_us": 4},
        {"action": "snapshot", "addr": 0, "size": 0, "time_us": 5},
        {"action": "oom", "size": 9, "device_free": 1, "time_us": 6},
    ]
    assert [(e.time_ns, e.kind, e.size) for e in from_cuda_trace(entries)] == [
        (1000, SEGMENT, 2 << 20), (2000, ALLOC, 1024), (4000, FREE, 1024), (6000, OOM, 9),
    ]  # fmt: skip
