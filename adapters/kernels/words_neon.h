// words.h for 64-bit ARM: four vectors of 128 bits.
#pragma once

#include "lanes.h"

#if defined(FLUVIAL_NEON)

namespace {

struct Ints {
  int32x4_t v[4];
};
struct Words {
  uint8x16_t v[4];
};
INLINE Ints same(int32_t value) {
  const int32x4_t four = vdupq_n_s32(value);
  return {{four, four, four, four}};
}
INLINE Words words(const void *p) {
  const uint8_t *from = static_cast<const uint8_t *>(p);
  return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}
INLINE void store(void *p, Words a) {
  for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<uint8_t *>(p) + 16 * i, a.v[i]);
}
INLINE Words fours(const void *four) {
  uint32_t all;
  std::memcpy(&all, four, 4);
  const uint8x16_t part = vreinterpretq_u8_u32(vdupq_n_u32(all));
  return {{part, part, part, part}};
}
template <typename T, typename F>
INLINE T each_part(T a, F value) {
  for (int i = 0; i < 4; ++i) a.v[i] = value(a.v[i]);
  return a;
}
INLINE Lanes to_float(Ints a) {
  return {{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1]), vcvtq_f32_s32(a.v[2]), vcvtq_f32_s32(a.v[3])}};
}
INLINE Words low_nibbles(Words a) {
  return each_part(a, [](uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); });
}
INLINE Words high_nibbles(Words a) {
  return each_part(a, [](uint8x16_t v) { return vshrq_n_u8(v, 4); });
}
INLINE Words above_128(Words a) {
  return each_part(a, [](uint8x16_t v) { return veorq_u8(v, vdupq_n_u8(128)); });
}
INLINE Words even_bytes(Words a) {
  return each_part(a, [](uint8x16_t v) { return vandq_u8(v, vreinterpretq_u8_u16(vdupq_n_u16(255))); });
}
INLINE Words odd_bytes(Words a) {
  return each_part(a, [](uint8x16_t v) { return vreinterpretq_u8_u16(vshrq_n_u16(vreinterpretq_u16_u8(v), 8)); });
}
// What add_products adds to: the two products of a lane meet only in to_float.
struct Pairs {
  int32x4_t v[8];
};
INLINE Pairs pairs(int32_t value) {
  const int32x4_t four = vzip1q_s32(vdupq_n_s32(value), vdupq_n_s32(0));
  return {{four, four, four, four, four, four, four, four}};
}
INLINE Lanes to_float(Pairs a) {
  Ints r;
  for (int i = 0; i < 4; ++i) r.v[i] = vpaddq_s32(a.v[2 * i], a.v[2 * i + 1]);
  return to_float(r);
}
INLINE Pairs add_products(Pairs sums, Words a, Words b) {
  for (int i = 0; i < 4; ++i) {
    const int16x8_t x = vreinterpretq_s16_u8(a.v[i]), y = vreinterpretq_s16_u8(b.v[i]);
    sums.v[2 * i] = vmlal_s16(sums.v[2 * i], vget_low_s16(x), vget_low_s16(y));
    sums.v[2 * i + 1] = vmlal_high_s16(sums.v[2 * i + 1], x, y);
  }
  return sums;
}
#if defined(FLUVIAL_DOT)
INLINE Ints add_byte_products(Ints sums, Words a, Words b) {  // both signed
  for (int i = 0; i < 4; ++i)
    sums.v[i] = vdotq_s32(sums.v[i], vreinterpretq_s8_u8(a.v[i]), vreinterpretq_s8_u8(b.v[i]));
  return sums;
}
#endif
INLINE Ints above(Ints high, Ints low) {
  for (int i = 0; i < 4; ++i) low.v[i] = vaddq_s32(vshlq_n_s32(high.v[i], 8), low.v[i]);
  return low;
}

INLINE Ints rounded(const float *x, float by) {
  Ints r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), by));
  return r;
}
INLINE Ints high_part(Ints a) {
  return each_part(a, [](int32x4_t v) { return vrshrq_n_s32(v, 8); });
}
INLINE Ints low_part(Ints a) {
  return each_part(a, [](int32x4_t v) { return vshrq_n_s32(vshlq_n_s32(v, 24), 24); });
}
INLINE int32_t total(Ints a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
INLINE int16x8_t narrowed(int32x4_t low, int32x4_t high) { return vmovn_high_s32(vmovn_s32(low), high); }
INLINE void store_bytes(Ints a, int8_t *to) {
  vst1q_s8(to, vmovn_high_s16(vmovn_s16(narrowed(a.v[0], a.v[1])), narrowed(a.v[2], a.v[3])));
}
INLINE void store_apart(Ints a, int16_t *even, int16_t *odd) {
  const int16x8_t low = narrowed(a.v[0], a.v[1]), high = narrowed(a.v[2], a.v[3]);
  vst1q_s16(even, vuzp1q_s16(low, high)), vst1q_s16(odd, vuzp2q_s16(low, high));
}

}  // namespace

#endif
