// Mamba between its projections (models/mamba.py, `mamba_mix`), for a few tokens: step size, recurrence, skip, gate.
//
//     h <- e^{dt A} * h + dt u B;  y = (h C + D u) silu(z)                        h [E, N], elementwise over both

#include "memory.h"

namespace {

// All T tokens of one channel; a state width that the compiler knows stays in registers.
INLINE void channel(const float *u, const float *dt, const float *B, const float *C, const float *A,
                    float skip, const float *h0, float *h1, float *y, int64_t T, int64_t E, int64_t N) {
  for (int64_t t = 0; t < T; ++t) {
    const float *from = t ? h1 : h0, *B_t = B + t * N, *C_t = C + t * N, step = dt[t * E], x = step * u[t * E];
    float sum = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t n = 0; n < N; ++n) {
      const float h = exp1(step * A[n]) * from[n] + x * B_t[n];
      h1[n] = h;
      sum += h * C_t[n];
    }
    y[t * E] = sum + skip * u[t * E];
  }
}

}  // namespace

// u, dt (before bias and softplus), z, y [B, T, E]; B, C [B, T, N]; A_log, [E, N]; dt_bias, D [E]; h0, h1 [B, E, N];
// padding [B, T] or null. Also put out for the journal: size [B, T, E], the step sizes.
KERNEL(mamba_mix)(const float *u, const float *dt, const float *z, const float *B_rows, const float *C_rows,
                  const float *A_log, const float *dt_bias, const float *D, const float *h0, const uint8_t *padding,
                  float *y, float *size, float *h1, int64_t B, int64_t T, int64_t E, int64_t N, int64_t threads) {
  const int64_t block = 64, blocks_ = (E + block - 1) / block;
  share(B * blocks_, threads, [&](int64_t job) {
    const int64_t batch = job / blocks_, first = job % blocks_ * block, end = first + block < E ? first + block : E;
    for (int64_t t = batch * T; t < (batch + 1) * T; ++t) {
      const float real = padding && padding[t] ? 0.f : 1.f;
#pragma omp simd
      for (int64_t e = first; e < end; ++e) size[t * E + e] = real * softplus1(dt[t * E + e] + dt_bias[e]);
    }
    const float *B_ = B_rows + batch * T * N, *C_ = C_rows + batch * T * N;
    for (int64_t e = first; e < end; ++e) {
      const int64_t at = batch * T * E + e, state = (batch * E + e) * N;
      alignas(64) float A[WIDTH];
#pragma omp simd
      for (int64_t n = 0; n < N; ++n) A[n] = -exp1(A_log[e * N + n]);
      if (N == 16)
        channel(u + at, size + at, B_, C_, A, D[e], h0 + state, h1 + state, y + at, T, E, 16);
      else
        channel(u + at, size + at, B_, C_, A, D[e], h0 + state, h1 + state, y + at, T, E, N);
    }
    for (int64_t t = batch * T; t < (batch + 1) * T; ++t) {
#pragma omp simd
      for (int64_t e = first; e < end; ++e) y[t * E + e] *= silu1(z[t * E + e]);
    }
  });
}
RECORDED(mamba_mix)
