// Matrices stored as codes with a scale for each group of columns.
#pragma once

#include "product.h"
#include "units.h"

namespace {

#if defined(__AVX512F__)
INLINE __mmask16 of_sixteen(int64_t count) {  // the first so many
  return static_cast<__mmask16>(0xffffu >> (16 - std::min<int64_t>(16, count)));
}
#endif

struct Scales {  // [out, in / group], fp16 or bf16
  const uint16_t *values;
  int64_t bf16;

#if defined(__AVX512F__)
  INLINE Lanes widen(const Scales &from, int64_t first, __mmask16 which) {
    const __m256i bits = _mm256_maskz_loadu_epi16(which, from.values + first);
    if (from.bf16) return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
    return {_mm512_cvtph_ps(bits)};
  }
#endif
  INLINE void widen(const Scales &from, int64_t first, int64_t count, float *to) {  // which has room for whole vectors
    const uint16_t *values = from.values + first;
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i < count; i += 16) store(to + i, widen(from, first + i, of_sixteen(count - i)));
#elif defined(__AVX2__)
    for (; i + 8 <= count; i += 8) {
      const __m128i bits = eight_halves(values + i);
      _mm256_storeu_ps(to + i, from.bf16 ? shifted_up(bits) : _mm256_cvtph_ps(bits));
    }
#elif defined(FLUVIAL_NEON)
    for (; i + 4 <= count; i += 4) {
      const uint16x4_t bits = vld1_u16(values + i);
      const float32x4_t wide = vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16));
      vst1q_f32(to + i, from.bf16 ? wide : vcvt_f32_f16(vreinterpret_f16_u16(bits)));
    }
#endif
    for (; i < count; ++i) to[i] = from.bf16 ? widened(values[i]) : from_half(values[i]);
  }
};

#if defined(__AVX512F__)
// Sixteen scales, one for every 32 of at most 512 columns.
struct Spread {
  __m512i index;
  __mmask16 which;

  Spread(int64_t columns, int64_t group) {
    const int shift = __builtin_ctzll(group / PAIR);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    index = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(shift));
    which = of_sixteen(((std::min<int64_t>(16, columns / PAIR) - 1) >> shift) + 1);
  }
  INLINE Lanes read(const Spread &how, const Scales &from, int64_t first) {  // from the value `first` on
    return {_mm512_permutexvar_ps(how.index, Scales::widen(from, first, how.which).v)};
  }
};
#endif

struct Grouped {  // q [N, K / 2] of int4 or [N, K] of int8; offset may be null: -8 scale of int4
  const uint8_t *q;
  Scales scale, offset;
  int64_t N, K, group;
};

// run(row, fresh) for all N >= SIZE rows, SIZE from `row` on at a time, of which the last `fresh` are new.
template <int64_t SIZE, typename F>
INLINE void each_band(int64_t N, int64_t threads, F run) {
  share_parts((N + SIZE - 1) / SIZE, threads, [&](int64_t band) {
    const int64_t fresh = std::min<int64_t>(SIZE, N - band * SIZE);
    run(band * SIZE + fresh - SIZE, fresh);
  });
}

}  // namespace
