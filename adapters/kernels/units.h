// Activations as whole numbers, for the products of int4 and int8 weights.
//
// 32 neighbouring columns become multiples of a common unit, of so many signed BYTES. With three the largest is nearly
// 2^23 units (int8: 2^22), which keeps what fp32 would keep of it. With two, for bf16, it is 32639 units: an error of
// 2^-16 of the largest, where bf16 itself has 2^-9. With one it is 127 units. Codes times whole numbers are summed
// exactly over the 32 columns; only adding those sums rounds again, in the order of the columns. So a row's result is
// the same beside any others.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace {

constexpr int64_t PAIR = 32;  // columns that share a unit

struct Step {
  float unit, by;  // `by` is 1 / unit; where not all is finite NaN and 0
};
template <int SLOTS, int BYTES>
INLINE Step step_of(float largest, bool finite) {
  // no sum of a lane overflows, no byte
  constexpr float UNITS = BYTES == 1 ? 127.f : BYTES == 2 ? 32639.f : SLOTS == 4 ? 8.3e6f : 4.1e6f;
  const float step = largest > UNITS * 1.2e-38f ? largest / UNITS : 1.2e-38f;
  return finite ? Step{step, 1.f / step} : Step{__builtin_nanf(""), 0.f};
}

}  // namespace
