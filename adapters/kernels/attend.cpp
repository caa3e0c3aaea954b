// Softmax attention of new tokens over the tape (models/attention.py, `attend`), which takes them in: one pass over
// keys and values for all query heads that share them, softmax sums carried along (Milakov & Gimelshein 2018), fp32
// inside.

#include "attend_few.h"
#include "attend_many.h"
#include "threads.h"

namespace {

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
    else
      few_queries(q + at, k_g, v_g, o + at, heads * T, heads, H * D, before[b], D, scale);
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
