// Softmax attention of new tokens over the tape (models/attention.py, `attend`), which takes them in: one pass over
// keys and values for all query heads that share them, softmax sums carried along (Milakov & Gimelshein 2018), fp32
// inside.

#include "attend_many.h"
#include "threads.h"

namespace {

constexpr int64_t KEYS = 64;    // scored before their values are added
constexpr int64_t QUERIES = 32;  // rows of q, tokens x query heads a key head, up to which keys are read in place
constexpr int64_t WIDTH = 256;   // channels of a head at most

template <typename Row>
INLINE float score(const float *q, const Row *k, int64_t D) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < D; ++d) sum += q[d] * exact(k[d]);
  return sum;
}

// One key head of one batch row. q, o: `queries` rows, row r at r / share * token + r % share * D (share query heads a
// key head, tokens `token` apart); k, v: rows D apart; row r sees the first `before` + r / share + 1 of them.
template <typename Row>
INLINE void head(const Row *q, const Row *k, const Row *v, Row *o, int64_t queries, int64_t share_, int64_t token,
                 int64_t before, int64_t D, float scale) {
  alignas(64) float rows[QUERIES * WIDTH], sums[QUERIES * WIDTH], scores[KEYS];
  float top[QUERIES], weight[QUERIES];
  for (int64_t r = 0; r < queries; ++r) {
    const Row *from = q + r / share_ * token + r % share_ * D;
    for (int64_t d = 0; d < D; ++d) rows[r * D + d] = exact(from[d]) * scale, sums[r * D + d] = 0.f;
    top[r] = -INFINITY, weight[r] = 0.f;
  }
  const int64_t all = before + (queries - 1) / share_ + 1;
  for (int64_t first = 0; first < all; first += KEYS) {
    for (int64_t r = 0; r < queries; ++r) {
      const int64_t seen = before + r / share_ + 1 - first, keys = seen < KEYS ? seen : KEYS;
      if (keys <= 0) continue;
      const float *row = rows + r * D;
      float *sum = sums + r * D, peak = top[r], more = 0.f;
      for (int64_t j = 0; j < keys; ++j) scores[j] = score(row, k + (first + j) * D, D);
      for (int64_t j = 0; j < keys; ++j) peak = scores[j] > peak ? scores[j] : peak;
#pragma omp simd reduction(+ : more)
      for (int64_t j = 0; j < keys; ++j) more += scores[j] = exp1(scores[j] - peak);
      const float keep = first ? exp1(top[r] - peak) : 0.f;
      weight[r] = weight[r] * keep + more, top[r] = peak;
      if (keep != 1.f)
        for (int64_t d = 0; d < D; ++d) sum[d] *= keep;
      int64_t j = 0;
      for (; j + 4 <= keys; j += 4) {
        const Row *v0 = v + (first + j) * D, *v1 = v0 + D, *v2 = v1 + D, *v3 = v2 + D;
        const float a = scores[j], b = scores[j + 1], c = scores[j + 2], e = scores[j + 3];
#pragma omp simd
        for (int64_t d = 0; d < D; ++d)
          sum[d] += a * exact(v0[d]) + b * exact(v1[d]) + (c * exact(v2[d]) + e * exact(v3[d]));
      }
      for (; j < keys; ++j) {
        const Row *v0 = v + (first + j) * D;
        for (int64_t d = 0; d < D; ++d) sum[d] += scores[j] * exact(v0[d]);
      }
    }
  }
  for (int64_t r = 0; r < queries; ++r) {
    Row *to = o + r / share_ * token + r % share_ * D;
    const float by = 1.f / weight[r];
    for (int64_t d = 0; d < D; ++d) put(sums[r * D + d] * by, to + d);
  }
}

template <typename Row>
INLINE void append(const Row *from, Row *to, int64_t T, int64_t step, int64_t D) {
  for (int64_t t = 0; t < T; ++t) std::memcpy(to + t * D, from + t * step, sizeof(Row) * D);
}

template <typename Row>
INLINE void attend(const Row *q, const Row *k, const Row *v, Row *k_store, Row *v_store, Row *o, const int64_t *about,
                   int64_t B, int64_t T, int64_t H, int64_t G, int64_t D, float scale, int64_t threads) {
  const int64_t heads = H / G, k_head = about[0], k_batch = about[1], *before = about + 2;
  int64_t rows = B * T;
  for (int64_t b = 0; b < B; ++b) rows += before[b];
  const bool many = heads * T > QUERIES;
  const int64_t parts = many ? (heads * T + SCORED - 1) / SCORED : 1;
  const auto take = [&](int64_t b, int64_t g) {
    const int64_t fresh = (b * T * G + g) * D, to = b * k_batch + g * k_head + before[b] * D;
    append(k + fresh, k_store + to, T, G * D, D);
    append(v + fresh, v_store + to, T, G * D, D);
  };
  if (parts > 1)
    for (int64_t i = 0; i < B * G; ++i) take(i / G, i % G);
  share(B * G * parts, 2 * T * H * D * rows >= THREADED ? threads : 1, [&](int64_t job) {
    const int64_t part = parts - 1 - job / (B * G), i = job % (B * G), b = i / G, g = i % G;  // the longest ones first
    const int64_t at = b * T * H * D + g * heads * D;
    const Row *k_g = k_store + b * k_batch + g * k_head, *v_g = v_store + b * k_batch + g * k_head;
    if (parts == 1) take(b, g);
    if (many)
      many_queries(q + at, k_g, v_g, o + at, part * SCORED, std::min((part + 1) * SCORED, heads * T), heads, H * D,
                   before[b], D, scale);
    else if (D == 128)  // a width that the compiler knows
      head(q + at, k_g, v_g, o + at, heads * T, heads, H * D, before[b], 128, scale);
    else
      head(q + at, k_g, v_g, o + at, heads * T, heads, H * D, before[b], D, scale);
  });
}

}  // namespace

// q, o [B, T, H, D]; new rows k, v [B, T, G, D], which are written behind the first before[b] of the stores. Those have
// batch rows and heads so far apart, rows of D adjacent; about: a head's step, a batch row's step, before [B]. All fp32,
// or all bf16 with `half`.
KERNEL(attend)(const void *q, const void *k, const void *v, void *k_store, void *v_store, void *o, const int64_t *about,
               int64_t B, int64_t T, int64_t H, int64_t G, int64_t D, int64_t half, float scale, int64_t threads) {
  if (half)
    attend(static_cast<const uint16_t *>(q), static_cast<const uint16_t *>(k), static_cast<const uint16_t *>(v),
           static_cast<uint16_t *>(k_store), static_cast<uint16_t *>(v_store), static_cast<uint16_t *>(o), about, B, T,
           H, G, D, scale, threads);
  else
    attend(static_cast<const float *>(q), static_cast<const float *>(k), static_cast<const float *>(v),
           static_cast<float *>(k_store), static_cast<float *>(v_store), static_cast<float *>(o), about, B, T, H, G, D,
           scale, threads);
}
RECORDED(attend)
