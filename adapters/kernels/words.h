// Sixteen whole numbers of 32 bits as one value, and thirty-two of 16 or sixty-four bytes, on every instruction set but
// AVX2, which has forms of its own (numbers_avx2.h).
#pragma once

#include "lanes.h"
#include "words_neon.h"
#include "words_plain.h"

#if defined(__AVX512F__)
#define VECTORS INLINE
#else
#define VECTORS static __attribute__((noinline))  // many instructions
#endif
#if defined(__AVX512VNNI__) || defined(FLUVIAL_DOT)
#define FLUVIAL_BYTES  // there is add_byte_products
#endif

namespace {

#if defined(__AVX512F__)

struct Ints {
  __m512i v;
};
struct Words {
  __m512i v;
};
INLINE Ints same(int32_t value) { return {_mm512_set1_epi32(value)}; }
INLINE Words words(const void *p) { return {_mm512_loadu_si512(p)}; }
INLINE void store(void *p, Words a) { _mm512_storeu_si512(p, a.v); }
INLINE Words fours(const void *four) {  // four bytes, sixteen times
  int32_t all;
  std::memcpy(&all, four, 4);
  return {_mm512_set1_epi32(all)};
}
INLINE Lanes to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
// 256 high + low
INLINE Ints above(Ints high, Ints low) { return {_mm512_add_epi32(_mm512_slli_epi32(high.v, 8), low.v)}; }
INLINE Words low_nibbles(Words a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
INLINE Words high_nibbles(Words a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
INLINE Words above_128(Words a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(-128))}; }
INLINE Words even_bytes(Words a) { return {_mm512_and_si512(a.v, _mm512_set1_epi16(255))}; }  // as words of 16 bits
INLINE Words odd_bytes(Words a) { return {_mm512_srli_epi16(a.v, 8)}; }
INLINE Ints add_products(Ints sums, Words a, Words b) {  // of words: lane i += a[2i] b[2i] + a[2i + 1] b[2i + 1]
  return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(a.v, b.v))};
}
INLINE Words all_bytes(int8_t value) { return {_mm512_set1_epi8(value)}; }
INLINE Words join(const void *low, const void *high) {  // 32 bytes each
  const auto half = [](const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); };
  return {_mm512_inserti64x4(_mm512_castsi256_si512(half(low)), half(high), 1)};
}
#if defined(__AVX512VNNI__)
INLINE Ints add_byte_products(Ints sums, Words a, Words b) {  // lane i += the four bytes i of a, 0..255, times those of b
  return {_mm512_dpbusd_epi32(sums.v, a.v, b.v)};
}
#endif

INLINE Ints rounded(const float *x, float by) {  // sixteen floats times `by`, to the nearest
  return {_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(by)))};
}
INLINE Ints high_part(Ints a) {  // without the last eight bits, to the nearest
  return {_mm512_srai_epi32(_mm512_add_epi32(a.v, _mm512_set1_epi32(128)), 8)};
}
INLINE Ints low_part(Ints a) { return {_mm512_srai_epi32(_mm512_slli_epi32(a.v, 24), 24)}; }  // the last eight, signed
INLINE int32_t total(Ints a) { return _mm512_reduce_add_epi32(a.v); }
INLINE void store_bytes(Ints a, int8_t *to) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(a.v));
}
INLINE void store_apart(Ints a, int16_t *even, int16_t *odd) {  // as words
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  const __m256i apart = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(_mm512_cvtepi32_epi16(a.v), order), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(even), _mm256_castsi256_si128(apart));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(odd), _mm256_extracti128_si256(apart, 1));
}

#endif

#if defined(FLUVIAL_DOT)  // the codes of int8 as they are multiplied, and which of them stands for 0
constexpr int32_t INT8_ZERO = 0;
INLINE Words int8_codes(Words a) { return a; }
#else
constexpr int32_t INT8_ZERO = 128;
INLINE Words int8_codes(Words a) { return above_128(a); }
#endif

#if !defined(FLUVIAL_NEON)
typedef Ints Pairs;  // what add_products adds to
INLINE Pairs pairs(int32_t value) { return same(value); }
#endif

}  // namespace
