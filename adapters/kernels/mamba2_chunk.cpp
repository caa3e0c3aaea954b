// Mamba-2 between its convolution and its output projection for many tokens: the chunk form of models/mamba2.py, whose
// letters these are. First C B^T, which a group's heads share; then a head is one job with h transposed, [N, P], in
// panels of its rows.
//
//     Y = tril((C B^T) * D) X + e^G (C h^T);  h' = e^{G_end} h + (X e^{G_end - G})^T B

#include "mamba2.h"
#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 32;

struct Shared {  // one chunk of a group: C, B [CHUNK, N], C B^T [CHUNK, CHUNK] up to the diagonal's block
  float *C, *B, *pairs;

  static int64_t floats(int64_t N) { return CHUNK * (2 * N + CHUNK); }
  Shared(float *space, int64_t N) : C(space), B(space + CHUNK * N), pairs(space + 2 * CHUNK * N) {}

  void fill(const float *B_rows, const float *C_rows, int64_t stride, int64_t n, int64_t N) {
    float *columns = scratch(N * CHUNK);
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(C + i * N, C_rows + i * stride, sizeof(float) * N);
      std::memcpy(B + i * N, B_rows + i * stride, sizeof(float) * N);
      for (int64_t e = 0; e < N; ++e) columns[e * CHUNK + i] = B[i * N + e];
    }
    for (int64_t j = 0; j < n; j += 16)
      tiles(n - j, [&](auto R, int64_t row) {
        Tile<R, 1> tile;
        tile.clear();
        tile.add(C + (j + row) * N, N, 1, columns + j, CHUNK, N);
        tile.write(pairs + (j + row) * CHUNK + j, CHUNK);
      });
  }
};

struct Chunk {  // one head's, of n tokens
  double G[CHUNK];
  float rise[CHUNK], fall[CHUNK];
  alignas(64) float weights[CHUNK * CHUNK], X[CHUNK * PANEL];

  void weigh(const float *pairs, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      float apart[CHUNK];
      for (int64_t j = 0; j < CHUNK; ++j) apart[j] = j <= i ? static_cast<float>(G[i] - G[j]) : 0.f;
#pragma omp simd
      for (int64_t j = 0; j < CHUNK; ++j) weights[i * CHUNK + j] = j <= i ? exp1(apart[j]) * pairs[i * CHUNK + j] : 0.f;
      rise[i] = std::exp(static_cast<float>(G[i])), fall[i] = std::exp(static_cast<float>(G[n - 1] - G[i]));
    }
  }

  // A panel of h^T [N, PANEL] after the chunk, whose rows X this takes; puts out y.
  void panel(const Shared &shared, float *h, float *y, int64_t y_stride, int64_t n, int64_t N) {
    tiles(n, [&](auto R, int64_t i) {
      Tile<R> tile;
      tile.clear();
      tile.add(shared.C + i * N, N, 1, h, PANEL, N);
      tile.scale(rise + i);
      tile.add(weights + i * CHUNK, CHUNK, 1, X, PANEL, i + R);
      tile.write(y + i * y_stride, y_stride);
    });
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < PANEL; ++j) X[i * PANEL + j] *= fall[i];
    tiles(N, [&](auto R, int64_t row) {
      Tile<R> tile;
      tile.read(h + row * PANEL, PANEL, rise[n - 1]);
      tile.add(shared.B + row, 1, N, X, PANEL, n);
      tile.write(h + row * PANEL, PANEL);
    });
  }
};

}  // namespace

// As mamba2_mix (mamba2_mix.cpp).
KERNEL(mamba2_chunk)(const float *mixed, const float *dt, const float *z, const float *A_log, const float *dt_bias,
                     const float *D, const float *gain, const float *h0, const uint8_t *padding, float *y, float *X,
                     float *log_decay, float *h1, int64_t B, int64_t T, int64_t H, int64_t G, int64_t P, int64_t N,
                     int64_t norm_groups, int64_t before, float dt_low, float dt_high, float eps, int64_t threads) {
  const int64_t inner = H * P, width = inner + 2 * G * N, wide = padded(P), chunks = (T + CHUNK - 1) / CHUNK;
  std::vector<float> space(B * G * chunks * Shared::floats(N));
  const auto shared = [&](int64_t group, int64_t chunk) {
    return Shared(space.data() + (group * chunks + chunk) * Shared::floats(N), N);
  };
  share(B * G * chunks, threads, [&](int64_t job) {
    const int64_t group = job / chunks, chunk = job % chunks, t = group / G * T + chunk * CHUNK;
    const float *rows = mixed + t * width + inner + group % G * N;
    const int64_t n = T - chunk * CHUNK < CHUNK ? T - chunk * CHUNK : CHUNK;
    shared(group, chunk).fill(rows, rows + G * N, width, n, N);
  });
  share(B * H, threads, [&](int64_t job) {
    const int64_t batch = job / H, head = job % H, group = batch * G + head / (H / G);
    const auto at = [&](int64_t t) { return (batch * T + t) * inner + head * P; };
    const auto row = [&](int64_t t) { return mixed + (batch * T + t) * width + head * P; };
    float *h = scratch((N + CHUNK) * wide), *out = h + N * wide;
    into_panels_transposed(h0 + job * P * N, h, P, N);
    const float A = -std::exp(A_log[head]);
    Chunk c;
    for (int64_t first = 0; first < T; first += CHUNK) {
      const int64_t n = T - first < CHUNK ? T - first : CHUNK;
      float sizes[CHUNK];
      double sum = 0.;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = batch * T + first + i;
        sizes[i] = padding && padding[t] ? 0.f : step_size(dt[t * H + head], dt_bias[head], dt_low, dt_high);
        log_decay[t * H + head] = A * sizes[i];
        c.G[i] = sum += A * sizes[i];
      }
      const Shared now = shared(group, first / CHUNK);
      c.weigh(now.pairs, n);
      for (int64_t from = 0; from < P; from += PANEL) {
        const int64_t columns = P - from < PANEL ? P - from : PANEL;
        for (int64_t i = 0; i < n; ++i) {
          scaled(row(first + i) + from, columns, sizes[i], c.X + i * PANEL);
          std::memcpy(X + at(first + i) + from, c.X + i * PANEL, sizeof(float) * columns);
          if (const int64_t t = first + CHUNK + i; t < T)
            for (int64_t j = from; j < from + columns; j += 16)
              soon(row(t) + j), soon(z + at(t) + j), soon_written(X + at(t) + j), soon_written(y + at(t) + j);
        }
        c.panel(now, h + from * N, out + from, wide, n, N);
      }
      for (int64_t i = 0; i < n; ++i) {
        float *y_i = y + at(first + i);
        std::memcpy(y_i, out + i * wide, sizeof(float) * P);
        skip_and_gate(y_i, row(first + i), D[head], z + at(first + i), !before, P);
      }
    }
    from_panels_transposed(h, h1 + job * P * N, P, N);
  });
  norm_groups_of(y, gain, z, before, B * T, norm_groups, inner / norm_groups, eps, threads);
}
