// words.h where there are no vector instructions that it knows.
#pragma once

#include "lanes.h"

#if !defined(__AVX2__)

namespace {

struct Ints {
  int32_t v[16];
};
struct Words {
  int16_t v[32];
};
INLINE Ints same(int32_t value) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.v[i] = value;
  return r;
}
INLINE Ints load(const int32_t *p) {
  Ints r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
INLINE Words words(const void *p) {
  Words r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
INLINE Words pairs(const void *two) {
  Words r;
  for (int i = 0; i < 16; ++i) std::memcpy(r.v + 2 * i, two, 4);
  return r;
}
INLINE Lanes to_float(Ints a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}
INLINE Ints add_products(Ints sums, Words a, Words b) {
  for (int i = 0; i < 16; ++i) sums.v[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
  return sums;
}
template <int SHIFT>
INLINE Words nibble(Words a) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(static_cast<uint16_t>(a.v[i]) >> SHIFT & 15);
  return a;
}
INLINE Words low_byte(Words a) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int8_t>(a.v[i]);
  return a;
}
INLINE Words high_byte(Words a) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(a.v[i] >> 8);
  return a;
}
INLINE Lanes fours(const float *p) {
  return each([=](int i) { return p[i / 4]; });
}
INLINE Lanes eights(const float *p) {
  return each([=](int i) { return p[i / 8]; });
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
INLINE Ints above(Ints high, Ints low) {
  for (int i = 0; i < 16; ++i)
    low.v[i] = static_cast<int32_t>((static_cast<uint32_t>(high.v[i]) << 8) + static_cast<uint32_t>(low.v[i]));
  return low;
}
INLINE void low_bytes(Ints a, int8_t *to) {
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(a.v[i]);
}
INLINE void store_apart(Ints a, int16_t *even, int16_t *odd) {
  for (int i = 0; i < 16; ++i) (i % 2 ? odd : even)[i / 2] = static_cast<int16_t>(a.v[i]);
}
template <typename F>
INLINE Words each_word(Words a, F value) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(value(static_cast<uint16_t>(a.v[i])));
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
INLINE Words bytes_as_words(Words a) {
  return each_word(a, [](int w) { return w & 255; });
}
INLINE Words upper_as_words(Words a) {
  return each_word(a, [](int w) { return w >> 8; });
}
INLINE void store(int32_t *p, Ints a) { std::memcpy(p, &a, sizeof a); }

}  // namespace

#endif
