// The largest values of rows, for choosing tokens (adapters/choice.py). One pass: a heap of the best so far, which few of
// the values of a large vocabulary ever enter.

#include <algorithm>
#include <vector>

#include "threads.h"

namespace {

struct Found {
  float value;
  int64_t id;
};
// NaN before all others, of equal values the one that stands first.
INLINE bool before(const Found &a, const Found &b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.id < b.id;
}

Found first_of(const float *x, int64_t V) {
  constexpr int64_t STEP = 1024;
  float most = x[0];
  int64_t at = 0;  // of the first stretch that holds it
  for (int64_t from = 0; from < V; from += STEP) {
    const int64_t end = std::min(from + STEP, V);
    float here = x[from];
    int nan = 0;
#pragma omp simd reduction(max : here) reduction(| : nan)
    for (int64_t i = from; i < end; ++i) here = x[i] > here ? x[i] : here, nan |= x[i] != x[i];
    for (int64_t i = from; nan && i < end; ++i)
      if (x[i] != x[i]) return {x[i], i};
    if (here > most) most = here, at = from;
  }
  while (x[at] != most) ++at;
  return {most, at};
}

void best_of(const float *x, int64_t V, std::vector<Found> &best) {
  constexpr int64_t STEP = 64;
  const int64_t count = best.size();
  for (int64_t i = 0; i < count; ++i) best[i] = {x[i], i};
  std::make_heap(best.begin(), best.end(), before);  // the last of them on top
  for (int64_t from = count; from < V; from += STEP) {
    const int64_t end = std::min(from + STEP, V);
    const float least = best[0].value;
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = from; i < end; ++i) any |= !(x[i] <= least);
    for (int64_t i = from; any && i < end; ++i) {
      if (!before({x[i], i}, best[0])) continue;
      std::pop_heap(best.begin(), best.end(), before);
      best.back() = {x[i], i};
      std::push_heap(best.begin(), best.end(), before);
    }
  }
  std::sort_heap(best.begin(), best.end(), before);
}

}  // namespace

// x [B, V] -> values, ids [B, count], largest first; 1 <= count <= V.
KERNEL(largest)(const float *x, float *values, int64_t *ids, int64_t B, int64_t V, int64_t count, int64_t threads) {
  share(B, threads, [&](int64_t row) {
    std::vector<Found> best(count);
    if (count == 1)
      best[0] = first_of(x + row * V, V);
    else
      best_of(x + row * V, V, best);
    for (int64_t i = 0; i < count; ++i) values[row * count + i] = best[i].value, ids[row * count + i] = best[i].id;
  });
}
