"""What chips send each other, read from a compiled program's text."""

import pytest

from imagen_video_jax.collectives import groups_of, read_collectives


def test_collectives_in_a_loop_are_counted_as_often_as_it_turns():
    text = """HloModule m
%body (p: f32[8]) -> f32[8] {
  %ag = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}, metadata={op_name="jit(f)/conv"}
}
%cond (p: f32[8]) -> pred[] {
}
%sum (p: f32[8]) -> f32[8] {
  %a2a = f32[8]{0} all-to-all(f32[8]{0} %p), dimensions={0}
}
%below (p: (s32[], f32[8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %turn = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn, %three), direction=LT
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %v = f32[8]{0} while(f32[8]{0} %a), condition=%below, body=%sum
  %w = f32[8]{0} while(f32[8]{0} %a), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %kernel = f32[8]{0} custom-call(f32[8]{0} %a), frontend_attributes={kernel_metadata={
 "of a Pallas kernel":"in lines of their own"
}}, metadata={op_name="jit(f)/splash"}
  %ar = (f32[2]{0}, bf16[4]{0}) all-reduce(f32[2]{0} %a, bf16[4]{0} %b), to_apply=%add
}
"""
    totals, gathers = read_collectives(text)
    # A ring sends a sum twice: to be added up, and added up.
    assert totals == {"all-gather": 5 * 128.0, "all-reduce": 2 * 16.0, "all-to-all": 3 * 32.0}
    assert gathers == ((128.0, "jit(f)/conv"),)


@pytest.mark.parametrize("groups", ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}"])
def test_what_each_chip_keeps_a_share_of_is_received_whole(groups):
    text = f"""HloModule m, num_partitions=8
%all-reduce-scatter.5 (p: bf16[64]) -> bf16[16] {{
  %all = bf16[64]{{0}} all-reduce(bf16[64]{{0}} %p), replica_groups={groups}, to_apply=%add
  ROOT %own = bf16[16]{{0}} dynamic-slice(%all, %first), dynamic_slice_sizes={{16}}
}}
ENTRY %main (a: bf16[64]) -> bf16[16] {{
  %f = bf16[16]{{0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.5
  %rs = f32[16]{{0}} reduce-scatter(%b), replica_groups={groups}, dimensions={{0}}, to_apply=%add
}}
"""
    assert read_collectives(text)[0] == {"reduce-scatter": 64 * 2.0 + 4 * 16 * 4.0}


def test_what_is_started_apart_is_counted_once_and_combined_ones_whole():
    text = """HloModule m, num_partitions=4
ENTRY %main (a: f32[8]) -> f32[8] {
  %ar = (f32[2]{0}, bf16[4]{0}) all-reduce-start(%a, %b), replica_groups={}, to_apply=%add
  %ag = ((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0})) all-gather-start(%c, %d), dimensions={0}
  %cp = (bf16[6]{0}, bf16[6]{0}, u32[], u32[]) collective-permute-start(%e), source_target_pairs={{0,1}}
}
"""
    totals, gathers = read_collectives(text)
    assert totals == {"all-reduce": 2 * (8 + 8.0), "all-gather": 32 + 48.0, "collective-permute": 12.0}
    assert gathers == ((80.0, ""),)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'x'}", [[0, 1], [2, 3]]),
        ("mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_chips_are_read_in_every_form_that_compilers_write(groups, expected):
    line = f"  %x = f32[4]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add"
    # The order within a group is no one's business.
    assert sorted(map(sorted, groups_of(line, 4).tolist())) == expected


def test_unknown_groups_are_an_error_and_no_guess():
    with pytest.raises(ValueError, match="unknown replica groups"):
        groups_of("  %x = f32[4] all-reduce(%a), replica_groups=<new form>", 4)
