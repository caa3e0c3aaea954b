// words.h where there are no vector instructions that it knows.
#pragma once

#include "lanes.h"

#if !defined(__AVX512F__) && !defined(FLUVIAL_NEON)

namespace {

struct Ints {
  int32_t v[16];
};
struct Words {
  uint16_t v[32];
};
INLINE Ints same(int32_t value) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = value;
  return r;
}
INLINE Words words(const void *p) {
  Words r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
INLINE void store(void *p, Words a) { std::memcpy(p, &a, sizeof a); }
INLINE Words fours(const void *four) {
  Words r;
  for (int i = 0; i < 16; ++i) std::memcpy(r.v + 2 * i, four, 4);
  return r;
}
INLINE Lanes to_float(Ints a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}
template <typename F>
INLINE Words each_word(Words a, F value) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<uint16_t>(value(a.v[i]));
  return a;
}
INLINE Words low_nibbles(Words a) {
  return each_word(a, [](int w) { return w & 0x0f0f; });
}
INLINE Words high_nibbles(Words a) {
  return each_word(a, [](int w) { return w >> 4 & 0x0f0f; });
}
INLINE Words above_128(Words a) {
  return each_word(a, [](int w) { return w ^ 0x8080; });
}
INLINE Words even_bytes(Words a) {
  return each_word(a, [](int w) { return w & 255; });
}
INLINE Words odd_bytes(Words a) {
  return each_word(a, [](int w) { return w >> 8; });
}
INLINE Ints add_products(Ints sums, Words a, Words b) {
  for (int i = 0; i < 16; ++i)
    sums.v[i] += static_cast<int16_t>(a.v[2 * i]) * static_cast<int16_t>(b.v[2 * i]) +
                 static_cast<int16_t>(a.v[2 * i + 1]) * static_cast<int16_t>(b.v[2 * i + 1]);
  return sums;
}
INLINE Ints rounded(const float *x, float by) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>(__builtin_lrintf(x[i] * by));
  return r;
}
INLINE Ints high_part(Ints a) {
  for (int i = 0; i < 16; ++i) a.v[i] = (a.v[i] + 128) >> 8;
  return a;
}
INLINE Ints low_part(Ints a) {
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<int8_t>(a.v[i]);
  return a;
}
INLINE int32_t total(Ints a) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += a.v[i];
  return sum;
}
INLINE void store_apart(Ints a, int16_t *even, int16_t *odd) {
  for (int i = 0; i < 16; ++i) (i % 2 ? odd : even)[i / 2] = static_cast<int16_t>(a.v[i]);
}

}  // namespace

#endif
