// Many rows of x where the CPU does not multiply bytes (else codes_panel.h): sixteen rows of W stand in the lanes of a
// vector, so that no sum crosses lanes. A block of W is turned round once, as bytes and in the cache, for all rows of x.
#pragma once

#include "codes.h"

namespace {

#if defined(__AVX512F__)
constexpr int SIXTEENS = 2, MANY = 8, MANY_WIDE = 4;  // vectors of rows of W, rows of x: their sums fit the registers
#elif defined(__AVX2__)
constexpr int SIXTEENS = 1, MANY = 3, MANY_WIDE = 2;
#else
constexpr int SIXTEENS = 1, MANY = 2, MANY_WIDE = 1;
#endif
constexpr int64_t BAND = 16 * SIXTEENS;  // rows of W turned round at a time
constexpr int64_t AT_ONCE = 128;         // rows of x that stay in the cache meanwhile

template <int SLOTS>
struct Band {
  static constexpr int PIECES = 16 / SLOTS;  // of 4 bytes, for 32 columns of a row
  std::vector<uint32_t> codes;               // [pair][piece][row]
  std::vector<float> scale, shift, sums;     // [pair][row], the same, [row of x][row]

  template <bool SHIFT>
  void turn(const Grouped &A, int64_t begin, int64_t rows) {
    const int64_t pairs = A.K / PAIR, row_bytes = pairs * 4 * PIECES;
    codes.resize(pairs * PIECES * BAND), scale.resize(pairs * BAND), sums.resize(AT_ONCE * BAND);
    if (SHIFT) shift.resize(pairs * BAND);
    for (int64_t r = 0; r < BAND; ++r) {
      const int64_t row = begin + std::min(r, rows - 1);  // past the end anything will do
      const uint8_t *from = A.q + row * row_bytes;
      for (int64_t i = 0; i < pairs * PIECES; ++i) std::memcpy(&codes[i * BAND + r], from + 4 * i, 4);
      for (int64_t i = 0; i < pairs; ++i) {
        const int64_t at = (row * A.K + i * PAIR) / A.group;
        scale[i * BAND + r] = A.scale.at(at);
        if (SHIFT) shift[i * BAND + r] = shift_of(A.scale.at(at), A.offset.at(at));
      }
    }
  }

  // sums [M, BAND] += x [M] . the band, over the 32 columns `pair`, whose place is `inner` in x's vectors.
  template <int M, bool SHIFT, bool WIDE>
  INLINE void add(const Band &band, const Rounded<SLOTS, WIDE> *x, int64_t stride, int64_t pair, int inner, float *sums) {
    Ints dots[M][SIXTEENS], lows[M][SIXTEENS];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < SIXTEENS; ++v) {
        dots[m][v] = same(SLOTS == 4 ? x[m * stride].starts[inner] : 0);
        lows[m][v] = same(WIDE ? x[m * stride].low_starts[inner] : 0);
      }
    const uint32_t *at = band.codes.data() + pair * PIECES * BAND;
    for (int piece = 0; piece < PIECES; ++piece, at += BAND) {
      Words codes[SIXTEENS][SLOTS], low_codes[SIXTEENS][SLOTS / 2];
#pragma GCC unroll 2
      for (int v = 0; v < SIXTEENS; ++v) {
        codes_of<SLOTS>(words(at + 16 * v), codes[v]);
        if (WIDE) low_codes_of<SLOTS>(words(at + 16 * v), low_codes[v]);
      }
#pragma GCC unroll 4
      for (int s = 0; s < SLOTS; ++s)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Words now = pairs(x[m * stride].words[s] + 2 * (PIECES * inner + piece));
#pragma GCC unroll 2
          for (int v = 0; v < SIXTEENS; ++v) dots[m][v] = add_products(dots[m][v], codes[v][s], now);
        }
#pragma GCC unroll 2
      for (int s = 0; WIDE && s < SLOTS / 2; ++s)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Words now = pairs(x[m * stride].low[s] + 4 * (PIECES * inner + piece));
#pragma GCC unroll 2
          for (int v = 0; v < SIXTEENS; ++v) lows[m][v] = add_byte_products(lows[m][v], low_codes[v][s], now);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < SIXTEENS; ++v) {
      const Lanes by = load(band.scale.data() + pair * BAND + 16 * v);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Rounded<SLOTS, WIDE> &now = x[m * stride];
        constexpr int LANES_OF = Rounded<SLOTS, WIDE>::LANES_OF;
        const int lane = LANES_OF * inner;
        float *to = sums + m * BAND + 16 * v;
        Lanes dot = to_float(dots[m][v]);  // 32 columns of WIDE would not fit in 32 bits
        if (WIDE) dot = fma(dot, all(256.f), to_float(lows[m][v]));
        Lanes total = fma(dot, by * all(now.unit[lane]), load(to));
        if (SHIFT) {
          float all_of = 0.f;
          for (int i = 0; i < LANES_OF; ++i) all_of += now.sum[lane + i];
          total = fma(load(band.shift.data() + pair * BAND + 16 * v), all(all_of), total);
        }
        store(to, total);
      }
    }
  }
};

template <bool SHIFT, int SLOTS, bool WIDE>
void many(const Grouped &A, int64_t begin, int64_t rows, const Rounded<SLOTS, WIDE> *x, int64_t stride, const Result &y,
          int64_t M) {
  static thread_local Band<SLOTS> band;
  band.template turn<SHIFT>(A, begin, rows);
  float *sums = band.sums.data();
  std::fill(sums, sums + M * BAND, 0.f);
  tiles<WIDE ? MANY_WIDE : MANY>(M, [&](auto size, int64_t m) {
    for (int64_t pair = 0; pair < A.K / PAIR; ++pair)
      Band<SLOTS>::template add<size, SHIFT, WIDE>(band, x + m * stride + pair / SLOTS, stride, pair,
                                             static_cast<int>(pair % SLOTS), sums + m * BAND);
  });
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < rows; ++r) Result::set(y, m, begin + r, sums[m * BAND + r]);
}

}  // namespace
