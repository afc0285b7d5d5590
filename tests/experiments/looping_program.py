"""The text of a compiled program with a loop."""

LOOP = """\
HloModule jit_step, num_partitions=1

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %next = s32[] add(%number, %number)
  %double = f32[4]{0} add(%x, %x), metadata={op_name="jit(step)/while/body/jvp(cross)/add"}
  ROOT %both = (s32[], f32[4]{0}) tuple(%next, %double)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[4]{0}) tuple(%zero, %a)
  %loop = (s32[], f32[4]{0}) while(%begin), body=%body, config={"known_trip_count":{"n":"3"}}
  %b = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %c = f32[4]{0} negate(%b)
}
"""
