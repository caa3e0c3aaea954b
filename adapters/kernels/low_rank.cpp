// y + strength (scale (x A^T) B^T + gain * base + bias): a plugin's update; the reference is the op in adapters/lora.py.
//
// A is stored by rows and B by columns, so both are read along. A sum over columns of x runs in sixteen lanes and one over
// ranks in their order, however many rows of x are in flight; threads share rows of x, or of few rows the outputs.

#include "product.h"

namespace {

constexpr int64_t ROWS = 32;         // of x that a thread takes at a time
constexpr int64_t COLUMNS = 256;     // of the outputs
constexpr int64_t RANKS = 8;         // of few rows, that a thread takes
constexpr int64_t BYTES = 256 << 10;  // of A and B for which threads share few rows

#if defined(__AVX512F__)  // accumulators that fit the registers: ranks, or vectors of outputs, times rows of x
constexpr int MOST = 4;
constexpr int ranks_of(int m) { return m == 1 ? 8 : 4; }
constexpr int vectors_of(int m) { return m == 1 ? 8 : 4; }
#elif defined(__AVX2__) || defined(FLUVIAL_NEON)
constexpr int MOST = 2;
constexpr int ranks_of(int m) { return m == 1 ? 4 : 2; }
constexpr int vectors_of(int m) { return m == 1 ? 4 : 2; }
#else
constexpr int MOST = 2;
constexpr int ranks_of(int m) { return m == 1 ? 2 : 1; }
constexpr int vectors_of(int m) { return m == 1 ? 2 : 1; }
#endif

template <typename T>
INLINE Lanes first(const T *p, int64_t n) {  // n of sixteen values, then zeros
  T lanes[16] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}

INLINE void store_first(float *p, Lanes a, int64_t n) {
  float lanes[16];
  store(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

template <typename T>
struct Update {
  const T *A, *B;                               // [rank, K], [rank, N]
  const float *y, *x, *base, *gain, *bias;      // [M, N], [M, K], [M, N], [N], [N]
  const float *strengths;                       // one for `per` rows of x each
  float *out, *low;                             // [M, N], [M, rank]
  int64_t N, K, rank, per;
  float scale;

  float strength(int64_t m) const { return strengths[m / per]; }
};

// low[m, j] = x[m] . A[j] for M rows and R ranks.
template <int R, int M, typename T>
INLINE void dots(const Update<T> &u, int64_t m, int64_t j) {
  const float *x = u.x + m * u.K;
  const T *A = u.A + j * u.K;
  const int64_t ahead = ahead_of(R * u.K * static_cast<int64_t>(sizeof(T)));
  Lanes sums[R][M];
#pragma GCC unroll 8
  for (int i = 0; i < R * M; ++i) sums[i / M][i % M] = zero();
  const auto step = [&](auto read, int64_t c) __attribute__((always_inline)) {
    Lanes rows[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) rows[i] = read(x + i * u.K + c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      prefetch(reinterpret_cast<const char *>(A + r * u.K + c) + ahead);
      const Lanes a = read(A + r * u.K + c);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) sums[r][i] = fma(a, rows[i], sums[r][i]);
    }
  };
  int64_t c = 0;
  for (; c + 16 <= u.K; c += 16) step([](auto p) __attribute__((always_inline)) { return load(p); }, c);
  if (c < u.K) step([n = u.K - c](auto p) { return first(p, n); }, c);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) u.low[(m + i) * u.rank + j + r] = sum(sums[r][i]);
}

template <typename T>
void lower(const Update<T> &u, int64_t from, int64_t end, int64_t begin, int64_t last) {  // rows of x, ranks
  tiles<MOST>(end - from, [&](auto size, int64_t m) {
    constexpr int R = ranks_of(size);
    int64_t j = begin;
    for (; j + R <= last; j += R) dots<R, size>(u, from + m, j);
    for (; j < last; ++j) dots<1, size>(u, from + m, j);
  });
}

// out for M rows and `vectors` times sixteen outputs from n on, of which the last vector may have fewer.
template <int V, int M, typename T>
INLINE void raise(const Update<T> &u, int64_t m, int64_t n, int64_t columns) {
  const bool whole = columns == 16 * V;
  const auto read = [&](auto p) __attribute__((always_inline)) { return whole ? load(p) : first(p, columns); };
  Lanes sums[M][V];
#pragma GCC unroll 32
  for (int i = 0; i < M * V; ++i) sums[i / V][i % V] = zero();
  const T *B = u.B + n;
  const float *low = u.low + m * u.rank;
  for (int64_t j = 0; j < u.rank; ++j, B += u.N)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      prefetch(B + 16 * (v + V));
      const Lanes b = read(B + 16 * v);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) sums[i][v] = fma(b, all(low[i * u.rank + j]), sums[i][v]);
    }
  for (int i = 0; i < M; ++i) {
    const Lanes scale = all(u.scale), strength = all(u.strength(m + i));
    const int64_t at = (m + i) * u.N + n;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Lanes update = sums[i][v] * scale;
      if (u.gain) update = fma(read(u.base + at + 16 * v), read(u.gain + n + 16 * v), update);
      if (u.bias) update = fma(all(1.f), read(u.bias + n + 16 * v), update);
      update = fma(update, strength, read(u.y + at + 16 * v));
      if (whole)
        store(u.out + at + 16 * v, update);
      else
        store_first(u.out + at, update, columns);
    }
  }
}

template <typename T>
void higher(const Update<T> &u, int64_t from, int64_t end, int64_t begin, int64_t last) {  // rows of x, outputs
  tiles<MOST>(end - from, [&](auto size, int64_t m) {
    constexpr int V = vectors_of(size);
    int64_t n = begin;
    for (; n + 16 * V <= last; n += 16 * V) raise<V, size>(u, from + m, n, 16 * V);
    for (; n < last; n += 16) raise<1, size>(u, from + m, n, std::min<int64_t>(16, last - n));
  });
}

// Rows from .. end of x, all of which the plugin acts on.
template <typename T>
void act(const Update<T> &u, int64_t from, int64_t end, int64_t threads) {
  const int64_t rows = end - from, bytes = u.rank * (u.K + u.N) * static_cast<int64_t>(sizeof(T));
  if (rows >= ROWS || bytes < BYTES) {
    share((rows + ROWS - 1) / ROWS, threads, [&](int64_t job) {
      const int64_t m = from + job * ROWS, next = std::min(end, m + ROWS);
      lower(u, m, next, 0, u.rank);
      for (int64_t n = 0; n < u.N; n += COLUMNS) higher(u, m, next, n, std::min(n + COLUMNS, u.N));
    });
    return;
  }
  share((u.rank + RANKS - 1) / RANKS, threads, [&](int64_t job) {
    lower(u, from, end, job * RANKS, std::min(u.rank, (job + 1) * RANKS));
  });
  share((u.N + COLUMNS - 1) / COLUMNS, threads, [&](int64_t job) {
    higher(u, from, end, job * COLUMNS, std::min(u.N, (job + 1) * COLUMNS));
  });
}

template <typename T>
void update(Update<T> u, int64_t M, int64_t threads) {
  static thread_local std::vector<float> space;
  if (static_cast<int64_t>(space.size()) < M * u.rank) space.resize(M * u.rank);
  u.low = space.data();
  for (int64_t m = 0, next; m < M; m = next) {
    const bool acts = u.strength(m) != 0.f;
    for (next = m + 1; next < M && (u.strength(next) != 0.f) == acts;) ++next;
    if (acts)
      act(u, m, next, threads);
    else
      std::memcpy(u.out + m * u.N, u.y + m * u.N, static_cast<size_t>((next - m) * u.N) * sizeof(float));
  }
}

}  // namespace

// y, base, out [M, N], x [M, K], A [rank, K] and B [rank, N], both bf16 or both fp32, strengths [M / per]; gain and bias
// [N] may be null.
KERNEL(low_rank)(const float *y, const float *x, const void *A, const void *B, const float *base, const float *gain,
                 const float *bias, const float *strengths, float *out, int64_t M, int64_t N, int64_t K, int64_t rank,
                 int64_t per, float scale, int64_t bf16, int64_t threads) {
  const auto run = [&](auto a, auto b) {
    update(Update<std::remove_const_t<std::remove_reference_t<decltype(*a)>>>{a, b, y, x, base, gain, bias, strengths, out, nullptr, N, K, rank, per,
                                              scale},
           M, threads);
  };
  if (bf16)
    run(static_cast<const uint16_t *>(A), static_cast<const uint16_t *>(B));
  else
    run(static_cast<const float *>(A), static_cast<const float *>(B));
}
RECORDED(low_rank)
