// Softmax attention of many tokens: keys and values in blocks, for each block the products of whole tiles of queries,
// softmax sums carried along. A row's sums are added in an order that does not depend on the other rows.
#pragma once

#include <algorithm>

#include "tiles.h"
#include "vector.h"

namespace {

constexpr int64_t SEEN = 2 * PANEL;  // keys of a block
constexpr int64_t SCORED = 256;      // rows of q that share a copy of it

INLINE float exact(float value) { return value; }
INLINE float exact(uint16_t value) { return widened(value); }
INLINE void put(float value, float *to) { *to = value; }
INLINE void put(float value, uint16_t *to) { *to = narrowed(value); }

// rows [count, D] -> [panels of D, SEEN, PANEL], zeros in what no panel fills
template <typename Row>
INLINE void values_into_panels(const Row *rows, float *to, int64_t count, int64_t D) {
  for (int64_t from = 0; from < D; from += PANEL)
    for (int64_t i = 0; i < SEEN; ++i, to += PANEL)
      for (int64_t j = 0; j < PANEL; ++j) to[j] = i < count && from + j < D ? exact(rows[i * D + from + j]) : 0.f;
}

// rows [count, D] -> transposed, [panels of SEEN, D, PANEL]
template <typename Row>
INLINE void keys_into_panels(const Row *rows, float *to, int64_t count, int64_t D) {
  for (int64_t from = 0; from < SEEN; from += PANEL, to += D * PANEL)
    for (int64_t j = 0; j < PANEL; ++j)
      for (int64_t d = 0; d < D; ++d) to[d * PANEL + j] = from + j < count ? exact(rows[(from + j) * D + d]) : 0.f;
}

// The next block of keys for one row: its scores [SEEN], of which it sees `keys`, become weights; gives the factor for
// what was summed before.
INLINE float weigh(float *scores, int64_t keys, float &top, float &weight) {
  float peak = top, more = 0.f;
  for (int64_t j = 0; j < SEEN; ++j) scores[j] = j < keys ? scores[j] : -INFINITY;
#pragma omp simd reduction(max : peak)
  for (int64_t j = 0; j < SEEN; ++j) peak = scores[j] > peak ? scores[j] : peak;
#pragma omp simd reduction(+ : more)
  for (int64_t j = 0; j < SEEN; ++j) more += scores[j] = exp1(scores[j] - peak);
  const float keep = exp1(top - peak);
  weight = weight * keep + more, top = peak;
  return keep;
}

// One key head of one batch row, as `head` of attend.cpp, from row `begin` of q up to `end`.
template <typename Row>
INLINE void many_queries(const Row *q, const Row *k, const Row *v, Row *o, int64_t begin, int64_t end, int64_t share_,
                         int64_t token, int64_t before, int64_t D, float scale) {
  const int64_t wide = padded(D), rows = end - begin, all = before + (end - 1) / share_ + 1;
  float *queries = scratch(rows * (D + wide + 2) + SEEN * (D + wide + ROWS)), *sums = queries + rows * D;
  float *keys = sums + rows * wide, *values = keys + SEEN * D, *scores = values + SEEN * wide;
  float *top = scores + ROWS * SEEN, *weight = top + rows;
  const auto place = [&](int64_t r) { return (begin + r) / share_ * token + (begin + r) % share_ * D; };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < D; ++d) queries[r * D + d] = exact(q[place(r) + d]) * scale;
    top[r] = -INFINITY, weight[r] = 0.f;
  }
  std::memset(sums, 0, sizeof(float) * rows * wide);
  for (int64_t first = 0; first < all; first += SEEN) {
    const int64_t count = all - first < SEEN ? all - first : SEEN;
    keys_into_panels(k + first * D, keys, count, D);
    values_into_panels(v + first * D, values, count, D);
    tiles(rows, [&](auto size, int64_t i) {
      constexpr int R = size;
      const auto sees = [&](int64_t r) { return before + (begin + r) / share_ + 1 - first; };
      if (sees(i + R - 1) <= 0) return;
      float keep[R];
      for (int64_t j = 0; j < SEEN; j += PANEL) {
        Tile<R> tile;
        tile.clear();
        tile.add(queries + i * D, D, 1, keys + j * D, PANEL, D);
        tile.write(scores + j, SEEN);
      }
      for (int r = 0; r < R; ++r) keep[r] = weigh(scores + r * SEEN, sees(i + r), top[i + r], weight[i + r]);
      for (int64_t d = 0; d < wide; d += PANEL) {
        Tile<R> tile;
        tile.read(sums + i * wide + d, wide);
        tile.scale(keep);
        tile.add(scores, SEEN, 1, values + d * SEEN, PANEL, count);
        tile.write(sums + i * wide + d, wide);
      }
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float by = 1.f / weight[r];
    for (int64_t d = 0; d < D; ++d) put(sums[r * wide + d] * by, o + place(r) + d);
  }
}

}  // namespace
