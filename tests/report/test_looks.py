from matplotlib.figure import Figure

from lpaf_jax.recipes import RECIPES
from lpaf_jax.report.labels import Room, Spot
from lpaf_jax.report.looks import looks


def test_no_two_methods_of_a_figure_look_alike():
    strangers = [f"a method of one's own, {i}" for i in range(20)]
    # Other tests register recipes of their own.
    ours = [name for name, make in RECIPES.items() if make.__module__.startswith("lpaf_jax.")]
    found = looks([*strangers, *ours])
    assert len({look[:2] for look in found.values()}) == len(ours) + len(strangers)


def test_a_method_looks_the_same_in_every_company():
    for name in ("lpaf", "svd-ft", "never registered"):
        alone = looks([name])[name]
        assert looks([name, "one more", "fwsvd"])[name] == alone
        assert looks(["drone", name])[name] == alone


def test_a_few_strangers_differ_by_colour():
    found = looks([f"stranger {i}" for i in range(7)])
    assert len({look.color for look in found.values()}) == 7


def test_a_label_goes_where_no_line_is():
    axes = Figure(figsize=(4, 3), layout="constrained").subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    room = Room(axes)
    room.line([0.5, 1], [0.5, 0.55])
    beside, under = Spot(0.5, 0.5, 8, 0), Spot(0.5, 0.5, 8, -16)
    assert room.clearest("crossed", [beside, under]) == under
    # Nor over another label, nor out of the frame.
    room.label("crossed", [under])
    left, outside = Spot(0.5, 0.5, -8, 0, "right"), Spot(0.5, 0, 8, -20)
    assert room.clearest("crossed", [under, outside, left]) == left
