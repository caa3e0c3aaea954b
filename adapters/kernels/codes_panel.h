// Many rows of x where the CPU multiplies bytes (VNNI): codes as unsigned bytes, activations as signed ones (blocks.h).
// A panel of W is turned round once, into the first cache, and read by all rows of x. Sums over 32 columns are exact.
#pragma once

#include "blocks.h"
#include "codes_lone.h"

namespace {

constexpr int64_t HALVES = 2, PANEL = 16 * HALVES;  // vectors of rows of W, rows of W
constexpr int64_t DEEP = 16 * PAIR;                 // columns of a panel
constexpr int64_t PASS = 256;                       // rows of x that are rounded at a time

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
      const Spread spread(columns, A.group);
      for (int r = 0; r < 16; ++r) {
        const int64_t first = (row(r) * A.K + from) / A.group;
        const Lanes by = Spread::read(spread, A.scale, first);
        scales[r] = _mm512_castps_si512(by.v);
        if (SHIFT) shifts[r] = _mm512_castps_si512(fma(all(8.f), by, Spread::read(spread, A.offset, first)).v);
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
  template <bool SHIFT, int SLOTS, int BYTES>
  INLINE void multiply(const Panel &panel, const Block<SLOTS, BYTES> *x, int64_t pairs, float (*sums)[PANEL]) {
    constexpr bool APART = SLOTS == 2 && BYTES == 3;  // 32 columns would not fit in 32 bits
    constexpr bool HELD = BYTES == 1;                 // there are registers left
    Lanes held[TILE][HALVES];
    if (HELD)
#pragma GCC unroll 4
      for (int m = 0; m < TILE; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < HALVES; ++v) held[m][v] = load(sums[m] + 16 * v);
    for (int64_t pair = 0; pair < pairs; ++pair, ++x) {
      Ints dots[BYTES][TILE][HALVES];
#pragma GCC unroll 3
      for (int byte = 0; byte < BYTES; ++byte)
#pragma GCC unroll 4
        for (int m = 0; m < TILE; ++m)
#pragma GCC unroll 2
          for (int v = 0; v < HALVES; ++v)
            dots[byte][m][v] = same(byte < (APART ? 2 : 1) ? x->start[byte < 2 ? byte : 0][m] : 0);
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
          Ints top = dots[BYTES - 1][m][v];
#pragma GCC unroll 3
          for (int byte = BYTES - 2; byte >= (APART ? 1 : 0); --byte) top = above(top, dots[byte][m][v]);
          Lanes dot = to_float(top);
          if (APART) dot = fma(dot, all(256.f), to_float(dots[0][m][v]));
          float *to = sums[m] + 16 * v;
          Lanes total = HELD ? held[m][v] : load(to);
          total = fma(dot, load(panel.scale[pair] + 16 * v) * all(x->unit[m]), total);
          if (SHIFT) total = fma(load(panel.shift[pair] + 16 * v), all(x->sum[m]), total);
          if (HELD)
            held[m][v] = total;
          else
            store(to, total);
        }
    }
    if (HELD)
#pragma GCC unroll 4
      for (int m = 0; m < TILE; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < HALVES; ++v) store(sums[m] + 16 * v, held[m][v]);
  }

 private:
  // add_byte_products; GCC 12 moves the sums of its own from register to register
  INLINE void add_in_place(Ints &sums, Words a, Words b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums.v) : "v"(a.v), "v"(b.v));
  }
  INLINE Words same_four(const int32_t *p) { return {_mm512_set1_epi32(*p)}; }
};

template <bool SHIFT, int SLOTS, int BYTES>
void panels(const Grouped &A, int64_t begin, int64_t rows, const Block<SLOTS, BYTES> *x, const Result &y, int64_t M) {
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
template <int SLOTS, int BYTES>
void multiply_panels(const Grouped &A, const void *given, Result y, int64_t M, int64_t threads) {
  static thread_local std::vector<Block<SLOTS, BYTES>> space;
  const int64_t stride = A.K / PAIR, most = std::min(M, PASS), size = y.bf16 ? 2 : 4;
  if (const size_t blocks = (most + TILE - 1) / TILE * stride; space.size() < blocks) space.resize(blocks);
  Block<SLOTS, BYTES> *blocks = space.data();
  for (int64_t from = 0; from < M; from += PASS) {
    const int64_t rows = std::min(PASS, M - from);
    const char *x = static_cast<const char *>(given) + from * A.K * size;
    share((rows + TILE - 1) / TILE, threads, [&](int64_t tile) {
      for (int64_t i = 0; i < stride; ++i) {
        const int64_t at = tile * TILE * A.K + i * PAIR, left = rows - tile * TILE;
        if (y.bf16)
          blocks[tile * stride + i].fill(reinterpret_cast<const uint16_t *>(x) + at, A.K, left);
        else
          blocks[tile * stride + i].fill(reinterpret_cast<const float *>(x) + at, A.K, left);
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
