// Mamba between its projections (models/mamba.py, `mamba_mix`): step size, recurrence, skip, gate, for any number of
// tokens. Sixteen channels lie side by side, so that a token's sum over the state needs no sum across lanes.
//
//     h <- e^{dt A} * h + dt u B;  y = (h C + D u) silu(z)                        h [E, N], elementwise over both

#include "powers.h"
#include "threads.h"
#include "tiles.h"
#include "vector.h"

namespace {

constexpr int64_t CHUNK = 16, BLOCK = 64, SIDE = 16;  // tokens; channels of a job, and side by side
static_assert(BLOCK % SIDE == 0);

struct Rows {  // of a chunk, [CHUNK, BLOCK]
  alignas(64) float size[CHUNK * BLOCK], gain[CHUNK * BLOCK], y[CHUNK * BLOCK];
};

// n tokens of 16 channels. A, in units of log 2, and h: [N, SIDE]; B, C [n, N]. A state width that the compiler knows
// stays in registers.
template <int64_t KNOWN>
INLINE void scan(Rows &rows, int64_t from, const float *A, float *h, const float *B, const float *C, int64_t n,
                 int64_t width) {
  const int64_t N = KNOWN ? KNOWN : width;
  Lanes held[KNOWN ? KNOWN : 1];
  for (int64_t i = 0; i < KNOWN; ++i) held[i] = load(h + i * SIDE);
  for (int64_t t = 0; t < n; ++t, B += N, C += N) {
    const Lanes size = load(rows.size + t * BLOCK + from), gain = load(rows.gain + t * BLOCK + from);
    Lanes y = zero();
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; ++i) {
      const Lanes decay = power_of_two(size * load(A + i * SIDE));
      const Lanes next = fma(decay, KNOWN ? held[i] : load(h + i * SIDE), gain * all(B[i]));
      if (KNOWN)
        held[i] = next;
      else
        store(h + i * SIDE, next);
      y = fma(next, all(C[i]), y);
    }
    store(rows.y + t * BLOCK + from, y);
  }
  for (int64_t i = 0; i < KNOWN; ++i) store(h + i * SIDE, held[i]);
}

}  // namespace

// u, dt (before bias and softplus), z, y [B, T, E]; B, C [B, T, N]; A_log, [E, N]; dt_bias, D [E]; h0, h1 [B, E, N];
// padding [B, T] or null. Also put out for the journal: size [B, T, E], the step sizes.
KERNEL(mamba_mix)(const float *u, const float *dt, const float *z, const float *B_rows, const float *C_rows,
                  const float *A_log, const float *dt_bias, const float *D, const float *h0, const uint8_t *padding,
                  float *y, float *size, float *h1, int64_t B, int64_t T, int64_t E, int64_t N, int64_t threads) {
  const int64_t blocks = (E + BLOCK - 1) / BLOCK;
  share(B * blocks, threads, [&](int64_t job) {
    const int64_t batch = job / blocks, first = job % blocks * BLOCK, all_ = E - first < BLOCK ? E - first : BLOCK;
    float *h = scratch(2 * N * BLOCK), *A = h + N * BLOCK;
    for (int64_t e = 0; e < all_; e += SIDE) {
      const int64_t some = all_ - e < SIDE ? all_ - e : SIDE;
      float *from = A + e * N, *state = h + e * N;
      transpose(A_log + (first + e) * N, N, from, SIDE, some, N);
      transpose(h0 + (batch * E + first + e) * N, N, state, SIDE, some, N);
      for (int64_t i = 0; i < N; ++i) {
        for (int64_t c = some; c < SIDE; ++c) from[i * SIDE + c] = state[i * SIDE + c] = 0.f;
        store(from + i * SIDE, all(-1.44269504f) * power_of_two(load(from + i * SIDE) * all(1.44269504f)));
      }
    }
    Rows rows;
    std::memset(&rows, 0, sizeof rows);  // what no channel fills stays finite
    for (int64_t start = 0; start < T; start += CHUNK) {
      const int64_t n = T - start < CHUNK ? T - start : CHUNK;
      for (int64_t t = 0; t < n; ++t) {
        const int64_t row = batch * T + start + t, at = row * E + first;
        const float real = padding && padding[row] ? 0.f : 1.f;
        float *sizes = rows.size + t * BLOCK, *gain = rows.gain + t * BLOCK;
#pragma omp simd
        for (int64_t e = 0; e < all_; ++e) {
          size[at + e] = sizes[e] = real * softplus1(dt[at + e] + dt_bias[first + e]);
          gain[e] = sizes[e] * u[at + e];
        }
        if (const int64_t next = at + CHUNK * E; start + CHUNK + t < T)
          for (int64_t e = 0; e < all_; e += 16) {
            soon(u + next + e), soon(dt + next + e), soon(z + next + e);
            soon_written(y + next + e), soon_written(size + next + e);
          }
      }
      const float *B_ = B_rows + (batch * T + start) * N, *C_ = C_rows + (batch * T + start) * N;
      for (int64_t e = 0; e < all_; e += SIDE)
        if (N == 16)
          scan<16>(rows, e, A + e * N, h + e * N, B_, C_, n, N);
        else
          scan<0>(rows, e, A + e * N, h + e * N, B_, C_, n, N);
      for (int64_t t = 0; t < n; ++t) {
        const int64_t at = (batch * T + start + t) * E + first;
        const float *sum = rows.y + t * BLOCK;
#pragma omp simd
        for (int64_t e = 0; e < all_; ++e) y[at + e] = (sum[e] + D[first + e] * u[at + e]) * silu1(z[at + e]);
      }
    }
    for (int64_t e = 0; e < all_; e += SIDE)
      transpose(h + e * N, SIDE, h1 + (batch * E + first + e) * N, N, N, all_ - e < SIDE ? all_ - e : SIDE);
  });
}
RECORDED(mamba_mix)
