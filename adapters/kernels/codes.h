// Matrices stored as codes with a scale for each group of columns: how their vectors and scales are read.
#pragma once

#include "product.h"
#include "rounded.h"

namespace {

struct Scales {  // [out, in / group], fp16 or bf16
  const uint16_t *values;
  int64_t bf16;

  float at(int64_t i) const { return bf16 ? widened(values[i]) : from_half(values[i]); }
};

struct Grouped {  // q [N, K / 2] of int4 or [N, K] of int8; offset may be null: -8 scale of int4
  const uint8_t *q;
  Scales scale, offset;
  int64_t N, K, group;
};

// What a code times its scale misses, where there is an offset: code scale + offset = (code - 8) scale + (offset + 8
// scale), which cancels less than the sum of the two.
INLINE float shift_of(float scale, float offset) { return offset + 8.f * scale; }

// The codes of 64 bytes, slot by slot as in Rounded<SLOTS>.
template <int SLOTS>
INLINE void codes_of(Words bytes, Words (&codes)[SLOTS]) {
  if constexpr (SLOTS == 4) {
    codes[0] = nibble<0>(bytes), codes[1] = nibble<4>(bytes), codes[2] = nibble<8>(bytes), codes[3] = nibble<12>(bytes);
  } else {
    codes[0] = low_byte(bytes), codes[1] = high_byte(bytes);
  }
}

// The same codes by bytes, as Rounded<SLOTS>::low: int8 plus 128.
template <int SLOTS>
INLINE void low_codes_of(Words bytes, Words (&codes)[SLOTS / 2]) {
  if constexpr (SLOTS == 4) {
    codes[0] = low_nibbles(bytes), codes[1] = high_nibbles(bytes);
  } else {
    codes[0] = above_128(bytes);
  }
}

template <int SLOTS>
INLINE Lanes by_lane(const float *scale) {
  if constexpr (SLOTS == 4) return fours(scale);
  return eights(scale);
}

#if defined(__AVX512F__)
// Sixteen scales, one for every 32 of at most 512 columns, from the value `first` on.
INLINE Lanes spread(const Scales &from, int64_t first, int64_t columns, int64_t group) {
  const int64_t pairs = std::min<int64_t>(16, columns / PAIR);
  const int shift = __builtin_ctzll(group / PAIR);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(shift));
  const int64_t n = ((pairs - 1) >> shift) + 1;
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(0xffffu >> (16 - n)), from.values + first);
  const __m512 wide =
      from.bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)) : _mm512_cvtph_ps(bits);
  return {_mm512_permutexvar_ps(index, wide)};
}
#endif

// A chunk's scales in fp32, one for every 32 columns; a vector may reach past its end.
struct Spread {
  float values[CHUNK / PAIR + 16] = {};

  void read(const Scales &from, int64_t first, int64_t columns, int64_t group) {
    const int64_t pairs = columns / PAIR;
#if defined(__AVX512F__)
    for (int64_t i = 0; i < pairs; i += 16)
      store(values + i, spread(from, first + i * PAIR / group, columns - i * PAIR, group));
#else
    const int64_t each = group / PAIR;
    for (int64_t i = 0; i < pairs; i += each) {
      const float value = from.at(first + i / each);
      for (int64_t j = i; j < std::min(i + each, pairs); ++j) values[j] = value;
    }
#endif
  }
};

}  // namespace
