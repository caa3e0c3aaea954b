// Softmax attention of a few queries, which read keys and values in place: two query heads of a token at a time meet
// each row of them while it is near, and the lines further on are on their way meanwhile. A row's sums are added in an
// order that does not depend on the other rows.
#pragma once

#include "attend_many.h"
#include "product.h"

namespace {

constexpr int64_t KEYS = 32;     // scored before their values are added
constexpr int64_t QUERIES = 32;  // rows of q, tokens x query heads a key head, up to which keys are read in place
constexpr int64_t WIDTH = 256;   // channels of a head at most
#if defined(__AVX512F__)
constexpr int MET = 4;  // keys at a time
constexpr int64_t NEXT = 8 << 10;  // bytes of keys, or of values, that are fetched ahead
#else
constexpr int MET = 1;  // memory gives most for one row straight on after another (measured with AVX2: 1.2 times)
constexpr int64_t NEXT = 1 << 10;
#endif

// A row of keys or values that will be read soon.
template <typename Row>
INLINE void fetch(const Row *from) {
  fetch_ahead(reinterpret_cast<const char *>(from) + NEXT);
}

// scores[r][j] = q_r . k_j for N rows of k; q [Q, D]
template <int Q, int N, bool FIRST, typename Row>
INLINE void score(const float *q, const Row *k, int64_t D, float (&scores)[Q][KEYS], int64_t j) {
  const int64_t whole = D / LANES * LANES;
  Lanes sums[Q][N];
  for (auto &row : sums)
    for (Lanes &one : row) one = zero();
  for (int64_t d = 0; d < whole; d += LANES) {
    Lanes of_q[Q];
    for (int r = 0; r < Q; ++r) of_q[r] = load(q + r * D + d);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const Lanes key = load(k + n * D + d);
      if (FIRST) fetch(k + n * D + d);
      for (int r = 0; r < Q; ++r) sums[r][n] = fma(of_q[r], key, sums[r][n]);
    }
  }
  for (int r = 0; r < Q; ++r)
    for (int n = 0; n < N; ++n) {
      float rest = 0.f;
      for (int64_t d = whole; d < D; ++d) rest += q[r * D + d] * exact(k[n * D + d]);
      scores[r][j + n] = sum(sums[r][n]) + rest;
    }
}

// sums_r = keep_r sums_r + sum_j weights[r][j] v_j in N vectors of columns
template <int Q, int N, bool FIRST, typename Row>
INLINE void gather(const float (&weights)[Q][KEYS], const float (&keep)[Q], const Row *v, int64_t keys, float *sums,
                   int64_t D) {
  Lanes total[Q][N];
  for (int r = 0; r < Q; ++r)
    for (int n = 0; n < N; ++n) total[r][n] = load(sums + r * D + n * LANES) * all(keep[r]);
  for (int64_t j = 0; j < keys; ++j, v += D) {
    Lanes by[Q];
    for (int r = 0; r < Q; ++r) by[r] = all(weights[r][j]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Lanes value = load(v + n * LANES);
      if (FIRST) fetch(v + n * LANES);
      for (int r = 0; r < Q; ++r) total[r][n] = fma(by[r], value, total[r][n]);
    }
  }
  for (int r = 0; r < Q; ++r)
    for (int n = 0; n < N; ++n) store(sums + r * D + n * LANES, total[r][n]);
}

// The same for all whole vectors, where their sums do not fit the registers: a row of v straight on after another.
template <int Q, bool FIRST, typename Row>
INLINE void gather_rows(const float (&weights)[Q][KEYS], const float (&keep)[Q], const Row *v, int64_t keys, float *sums,
                        int64_t D) {
  for (int64_t j = 0; j < keys; ++j, v += D)
    for (int64_t d = 0; d + LANES <= D; d += LANES) {
      const Lanes value = load(v + d);
      if (FIRST) fetch(v + d);
      for (int r = 0; r < Q; ++r) {
        const Lanes before = load(sums + r * D + d);
        store(sums + r * D + d, fma(all(weights[r][j]), value, j ? before : before * all(keep[r])));
      }
    }
}

// Q rows of q over the next `keys` keys and values: their sums, highest scores and weights go on.
template <int Q, bool FIRST, typename Row>
INLINE void meet(const float *q, const Row *k, const Row *v, int64_t keys, int64_t D, float *sums, float *top,
                 float *weight) {
  float scores[Q][KEYS], keep[Q];
  int64_t j = 0;
  for (; j + MET <= keys; j += MET) score<Q, MET, FIRST>(q, k + j * D, D, scores, j);
  for (; j < keys; ++j) score<Q, 1, FIRST>(q, k + j * D, D, scores, j);
  for (int r = 0; r < Q; ++r) {
    float peak = top[r], more = 0.f;
    for (j = 0; j < keys; ++j) peak = scores[r][j] > peak ? scores[r][j] : peak;
#pragma omp simd reduction(+ : more)
    for (j = 0; j < keys; ++j) more += scores[r][j] = exp1(scores[r][j] - peak);
    keep[r] = exp1(top[r] - peak);
    weight[r] = weight[r] * keep[r] + more, top[r] = peak;
  }
  int64_t d = 0;
#if defined(__AVX512F__)
  for (; d + 8 * LANES <= D; d += 8 * LANES) gather<Q, 8, FIRST>(scores, keep, v + d, keys, sums + d, D);
  for (; d + LANES <= D; d += LANES) gather<Q, 1, FIRST>(scores, keep, v + d, keys, sums + d, D);
#else
  gather_rows<Q, FIRST>(scores, keep, v, keys, sums, D);
  d = D / LANES * LANES;
#endif
  for (; d < D; ++d)
    for (int r = 0; r < Q; ++r) {
      float &total = sums[r * D + d];
      total *= keep[r];
      for (j = 0; j < keys; ++j) total += scores[r][j] * exact(v[j * D + d]);
    }
}

// One key head of one batch row. q, o: `queries` rows, row r at r / share * token + r % share * D (share query heads a
// key head, tokens `token` apart); k, v: rows D apart; row r sees the first `before` + r / share + 1 of them.
template <typename Row>
INLINE void few_queries(const Row *q, const Row *k, const Row *v, Row *o, int64_t queries, int64_t share_, int64_t token,
                        int64_t before, int64_t D, float scale) {
  alignas(64) float rows[QUERIES * WIDTH], sums[QUERIES * WIDTH];
  float top[QUERIES], weight[QUERIES];
  for (int64_t r = 0; r < queries; ++r) {
    const Row *from = q + r / share_ * token + r % share_ * D;
    for (int64_t d = 0; d < D; ++d) rows[r * D + d] = exact(from[d]) * scale, sums[r * D + d] = 0.f;
    top[r] = -INFINITY, weight[r] = 0.f;
  }
  const int64_t tokens = queries / share_, all = before + tokens;
  for (int64_t first = 0; first < all; first += KEYS)
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t seen = std::min(before + t + 1 - first, KEYS);
      if (seen <= 0) continue;
      tiles<2>(share_, [&](auto size, int64_t head) {
        const int64_t r = t * share_ + head;
        const auto run = [&](auto once) {
          meet<size, once>(rows + r * D, k + first * D, v + first * D, seen, D, sums + r * D, top + r, weight + r);
        };
        r ? run(std::false_type{}) : run(std::true_type{});
      });
    }
  for (int64_t r = 0; r < queries; ++r) {
    Row *to = o + r / share_ * token + r % share_ * D;
    const float by = 1.f / weight[r];
    for (int64_t d = 0; d < D; ++d) put(sums[r * D + d] * by, to + d);
  }
}

}  // namespace
