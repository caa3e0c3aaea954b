// Many rows of x where the CPU multiplies bytes (VNNI): codes as unsigned bytes, activations as signed ones (blocks.h).
// A panel of W is turned round once, into the first cache, and read by all rows of x. Sums over 32 columns are exact.
#pragma once

#include "blocks.h"
#include "codes.h"

namespace {

constexpr int64_t HALVES = 2, PANEL = 16 * HALVES;  // vectors of rows of W, rows of W
constexpr int64_t DEEP = 16 * PAIR;                 // columns of a panel
constexpr int64_t PASS = 256;                       // rows of x that are rounded at a time

INLINE void transpose(__m512i (&a)[16]) {  // 16 x 16 words of 32 bits
  __m512i b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88), a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
  }
}

// 32 rows of W, DEEP columns.
struct Panel {
  alignas(64) uint8_t codes[DEEP / PAIR][QUADS][PANEL][4];
  alignas(64) float scale[DEEP / PAIR][PANEL], shift[DEEP / PAIR][PANEL];

  template <int SLOTS, bool SHIFT>
  void turn(const Grouped &A, int64_t begin, int64_t rows, int64_t from, int64_t columns) {
    constexpr int64_t STEP = 32 * SLOTS;  // columns of 64 bytes
    for (int64_t half = 0; half < HALVES; ++half) {
      // past the end anything will do
      const auto row = [&](int64_t r) { return begin + std::min(16 * half + r, rows - 1); };
      for (int64_t c = 0; c < columns; c += STEP) {
        const int64_t pieces = std::min(STEP, columns - c) / (2 * SLOTS);
        __m512i at[16];
        for (int r = 0; r < 16; ++r)
          at[r] = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(0xffffu >> (16 - pieces)),
                                           A.q + (row(r) * A.K + from + c) * 64 / STEP);
        transpose(at);
        for (int i = 0; i < pieces; ++i) {
          if constexpr (SLOTS == 4) {
            uint8_t(*to)[PANEL][4] = codes[c / PAIR + i / 4] + i % 4;
            _mm512_store_si512(to[0][16 * half], low_nibbles({at[i]}).v);
            _mm512_store_si512(to[4][16 * half], high_nibbles({at[i]}).v);
          } else {
            _mm512_store_si512(codes[c / PAIR + i / 8][i % 8][16 * half], above_128({at[i]}).v);
          }
        }
      }
      __m512i scales[16], shifts[16];
      for (int r = 0; r < 16; ++r) {
        const int64_t first = (row(r) * A.K + from) / A.group;
        const Lanes by = spread(A.scale, first, columns, A.group);
        scales[r] = _mm512_castps_si512(by.v);
        if (SHIFT)
          shifts[r] = _mm512_castps_si512(fma(all(8.f), by, spread(A.offset, first, columns, A.group)).v);
      }
      transpose(scales);
      if (SHIFT) transpose(shifts);
      for (int64_t i = 0; i < columns / PAIR; ++i) {
        _mm512_store_si512(scale[i] + 16 * half, scales[i]);
        if (SHIFT) _mm512_store_si512(shift[i] + 16 * half, shifts[i]);
      }
    }
  }

  // sums [TILE, PANEL] += x . the panel
  template <bool SHIFT, int SLOTS, bool WIDE>
  INLINE void multiply(const Panel &panel, const Block<SLOTS, WIDE> *x, int64_t pairs, float (*sums)[PANEL]) {
    constexpr int BYTES = Block<SLOTS, WIDE>::BYTES;
    for (int64_t pair = 0; pair < pairs; ++pair, ++x) {
      Ints dots[BYTES][TILE][HALVES];
#pragma GCC unroll 4
      for (int m = 0; m < TILE; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < HALVES; ++v) {
          dots[0][m][v] = same(x->start[0][m]);
          dots[1][m][v] = SLOTS == 2 && WIDE ? same(x->start[1][m]) : same(0);
          if (WIDE) dots[BYTES - 1][m][v] = same(0);
        }
#pragma GCC unroll 2
      for (int quad = 0; quad < QUADS; ++quad) {
        Words codes[HALVES];
#pragma GCC unroll 2
        for (int v = 0; v < HALVES; ++v) codes[v] = words(panel.codes[pair][quad][16 * v]);
#pragma GCC unroll 3
        for (int byte = 0; byte < BYTES; ++byte)
#pragma GCC unroll 4
          for (int m = 0; m < TILE; ++m) {
            const Words now = same_four(x->words[byte][quad] + m);
#pragma GCC unroll 2
            for (int v = 0; v < HALVES; ++v) add_in_place(dots[byte][m][v], codes[v], now);
          }
      }
#pragma GCC unroll 4
      for (int m = 0; m < TILE; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < HALVES; ++v) {
          Ints top = above(dots[BYTES - 1][m][v], dots[BYTES - 2][m][v]);
          Lanes dot;
          if (SLOTS == 2 && WIDE)  // 32 columns would not fit in 32 bits
            dot = fma(to_float(top), all(256.f), to_float(dots[0][m][v]));
          else
            dot = to_float(WIDE ? above(top, dots[0][m][v]) : top);
          float *to = sums[m] + 16 * v;
          Lanes total = fma(dot, load(panel.scale[pair] + 16 * v) * all(x->unit[m]), load(to));
          if (SHIFT) total = fma(load(panel.shift[pair] + 16 * v), all(x->sum[m]), total);
          store(to, total);
        }
    }
  }

 private:
  // add_byte_products; GCC 12 moves the sums of its own from register to register
  INLINE void add_in_place(Ints &sums, Words a, Words b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums.v) : "v"(a.v), "v"(b.v));
  }
  INLINE Words same_four(const int32_t *p) { return {_mm512_set1_epi32(*p)}; }
};

template <bool SHIFT, int SLOTS, bool WIDE>
void panels(const Grouped &A, int64_t begin, int64_t rows, const Block<SLOTS, WIDE> *x, const Result &y, int64_t M) {
  static thread_local Panel panel;
  alignas(64) static thread_local float sums[PASS][PANEL];
  std::memset(sums, 0, sizeof sums);
  for (int64_t from = 0; from < A.K; from += DEEP) {
    const int64_t columns = std::min(DEEP, A.K - from);
    panel.turn<SLOTS, SHIFT>(A, begin, rows, from, columns);
    for (int64_t m = 0; m < M; m += TILE)
      Panel::multiply<SHIFT>(panel, x + (m / TILE * A.K + from) / PAIR, columns / PAIR, sums + m);
  }
  for (int64_t m = 0; m < M; ++m) Result::set(y, m, begin, rows, sums[m]);
}

// A thread's blocks of x, for any matrix.
template <int SLOTS, bool WIDE>
void multiply_panels(const Grouped &A, const void *given, Result y, int64_t M, int64_t threads) {
  static thread_local std::vector<Block<SLOTS, WIDE>> space;
  const int64_t stride = A.K / PAIR, most = std::min(M, PASS), size = y.bf16 ? 2 : 4;
  if (const size_t blocks = (most + TILE - 1) / TILE * stride; space.size() < blocks) space.resize(blocks);
  Block<SLOTS, WIDE> *blocks = space.data();
  for (int64_t from = 0; from < M; from += PASS) {
    const int64_t rows = std::min(PASS, M - from);
    const char *x = static_cast<const char *>(given) + from * A.K * size;
    share((rows + TILE - 1) / TILE, threads, [&](int64_t tile) {
      for (int64_t i = 0; i < stride; ++i) {
        const int64_t at = tile * TILE * A.K + i * PAIR, left = rows - tile * TILE;
        if constexpr (WIDE)
          blocks[tile * stride + i].fill(reinterpret_cast<const float *>(x) + at, A.K, left);
        else
          blocks[tile * stride + i].fill(reinterpret_cast<const uint16_t *>(x) + at, A.K, left);
      }
    });
    const Result to{static_cast<char *>(y.y) + from * y.N * size, y.N, y.bf16};
    share((A.N + PANEL - 1) / PANEL, threads, [&](int64_t job) {
      const int64_t begin = job * PANEL, count = std::min(PANEL, A.N - begin);
      if (SLOTS == 4 && A.offset.values)
        panels<SLOTS == 4>(A, begin, count, blocks, to, rows);
      else
        panels<false>(A, begin, count, blocks, to, rows);
    });
  }
}

}  // namespace
