// The kernels with the vectors of 64-bit ARM against their plain form, compiled from the same sources (cross.py): every
// set that this CPU runs gives the same bits where whole numbers and the order of additions promise it, else nearly so.
// What multiplies matrices is also compared with sums in double.

#include "given.h"

#define SETS_OF(type, name)                                                                                  \
  extern "C" type fluvial_##name##_plain, fluvial_##name##_baseline, fluvial_##name##_dotprod;               \
  static constexpr type *name[MOST] = {fluvial_##name##_plain, fluvial_##name##_baseline, fluvial_##name##_dotprod};
typedef const float *In;
typedef float *Out;
typedef int64_t Size;
typedef void Delta(In, In, In, In, In, In, In, In, const uint8_t *, Out, Out, Out, Out, Out, Size, Size, Size, Size,
                   Size, Size, Size, float, float, float, Size);
SETS_OF(Recorded, int4_linear_words)
SETS_OF(Recorded, int8_linear_words)
SETS_OF(Recorded, dense_linear_words)
SETS_OF(Recorded, low_rank_words)
SETS_OF(Recorded, rms_norm_words)
SETS_OF(Recorded, attend_words)
SETS_OF(Recorded, mamba_mix_words)
SETS_OF(Delta, gated_delta_mix)
SETS_OF(Delta, gated_delta_chunk)
extern "C" int fluvial_dotprod();

struct Shape {
  int64_t M, N, K, group;
};

// One product; `kind` picks fp32 or bf16 for x and y, fp16 or bf16 for scales, offsets or none, a row of extreme codes.
static void codes(const Shape &s, int slots, int64_t bytes, int kind, Floats values) {
  const bool bf16 = kind & 1, bf16_scales = kind & 2, shift = slots == 4 && kind & 4;
  const int64_t columns = s.K * 2 / slots;
  std::vector<uint8_t> q(s.N * columns);
  for (uint8_t &code : q) code = static_cast<uint8_t>(random_bits());
  if (kind & 8) std::fill(q.begin(), q.begin() + columns, slots == 4 ? 0xff : 0x80);
  Floats scales = drawn(s.N * s.K / s.group, 0.02f);
  scales[0] = 3e-7f;  // subnormal in fp16
  const Halves scale = to_halves(scales, bf16_scales), offset = to_halves(drawn(scales.size(), 0.1f), bf16_scales);
  const Floats by = from_halves(scale, bf16_scales), from = from_halves(offset, bf16_scales);
  const Stored x(values, bf16);
  std::vector<double> W(s.N * s.K);
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t g = (n * s.K + k) / s.group;
      const uint8_t byte = q[n * columns + (slots == 4 ? k / 32 * 16 + k % 16 : k)];
      const int code = slots == 2 ? static_cast<int8_t>(byte) : k / 16 % 2 ? byte >> 4 : byte & 15;
      W[n * s.K + k] = slots == 2 ? 1. * code * by[g] : shift ? 1. * code * by[g] + from[g] : (code - 8.) * by[g];
    }
  char what[100];
  std::snprintf(what, sizeof what, "int%d, %d bytes, M %d, N %d, K %d, kind %d", 16 / slots, int(bytes), int(s.M),
                int(s.N), int(s.K), kind);
  const Floats y = compare(what, s.M * s.N, bf16, true, [&](int set, void *to) {
    if (slots == 4)
      call(int4_linear_words[set], x.data(), q.data(), scale.data(), shift ? offset.data() : nullptr, to, s.M, s.N, s.K,
           s.group, bf16, bf16_scales, bytes, 1);
    else
      call(int8_linear_words[set], x.data(), q.data(), scale.data(), to, s.M, s.N, s.K, s.group, bf16, bf16_scales,
           bytes, 1);
  });
  in_double(what, y, x.wide, W, s.K, bytes == 1 ? 1 / 250. : bytes == 2 ? 1 / 65000. : 1e-6, 1.2e-38, bf16);
}

static void all_codes() {
  std::vector<Shape> shapes;
  for (int64_t M = 1; M <= 18; ++M) shapes.push_back({M, 7, 192, 32});
  for (int64_t M : {1, 3, 5, 17}) shapes.push_back({M, 37, 2304, 64}), shapes.push_back({M, 16, 544, 32});
  shapes.insert(shapes.end(), {{1, 1, 32, 32}, {2, 20, 4352, 256}, {5, 5, 4352, 128}, {131, 21, 160, 32}});
  int kind = 0;
  for (int slots : {2, 4})
    for (int64_t bytes : {1, 2, 3})
      for (const Shape &s : shapes) {
        for (int i = 0; i < 3; ++i, kind = (kind + 5) % 16) codes(s, slots, bytes, kind, drawn(s.M * s.K));
        codes(s, slots, bytes, 8, Floats(s.M * s.K, kind & 1 ? 1e30f : -3.f));  // every product of the same sign
        Floats wild = drawn(s.M * s.K, 1e-38f);  // nearly nothing, no number, infinity
        wild[s.K / 2] = NAN, wild.back() = INFINITY;
        codes(s, slots, bytes, 4, wild);
      }
}

static void all_dense() {
  for (int64_t M = 1; M <= 18; ++M)
    for (int64_t N : {1, 7, 37})
      for (int64_t K : {32, 192, 2304})
        for (int kind = 0; kind < (K < 2000 || M % 4 == 1 ? 4 : 0); ++kind) {
          const Stored x(drawn(M * K), kind & 1), W(drawn(N * K), kind & 2);
          const Floats y = compare("dense", M * N, x.bf16, true, [&](int set, void *to) {
            call(dense_linear_words[set], x.data(), W.data(), to, M, N, K, x.bf16, W.bf16, 1);
          });
          in_double("dense", y, x.wide, {W.wide.begin(), W.wide.end()}, K, 1e-6, 0, x.bf16);
        }
}

static void all_low_rank() {
  for (int64_t M : {1, 2, 3, 5, 9, 40})
    for (int64_t N : {33, 150, 304})
      for (bool bf16 : {false, true}) {
        const int64_t K = N + 7, rank = 11;
        const Floats y = drawn(M * N), x = drawn(M * K), base = drawn(M * N), gain = drawn(N), bias = drawn(N);
        const Floats strengths = drawn(M);
        const Stored A(drawn(rank * K), bf16), B(drawn(rank * N), bf16);
        compare("low_rank", M * N, false, true, [&](int set, void *to) {
          call(low_rank_words[set], y.data(), x.data(), A.data(), B.data(), base.data(), gain.data(), bias.data(),
               strengths.data(), to, M, N, K, rank, 1, 0.3f, bf16, 1);
        });
      }
}

static void all_rows() {
  for (int64_t rows : {1, 5, 40})
    for (int64_t width : {1, 33, 1024}) {
      const Floats x = drawn(rows * width), gain = drawn(width);
      compare("rms_norm", rows * width, false, true, [&](int set, void *to) {
        call(rms_norm_words[set], x.data(), gain.data(), to, rows, width, 1.f, 1e-6f, 1);
      });
    }
}

static void all_attend() {
  for (int64_t T : {1, 5, 40})
    for (int64_t D : {8, 17, 128})
      for (bool bf16 : {false, true}) {
        const int64_t H = 6, G = 2, before = 70, rows = before + T, about[] = {rows * D, G * rows * D, before};
        const Stored q(drawn(T * H * D), bf16), k(drawn(T * G * D), bf16), v(drawn(T * G * D), bf16);
        const Stored tape(drawn(G * rows * D), bf16);
        compare("attend", T * H * D, bf16, false, [&](int set, void *to) {
          Stored keys = tape, values = tape;
          call(attend_words[set], q.data(), k.data(), v.data(), keys.data(), values.data(), to, about, 1, T, H, G, D,
               bf16, 0.3f, 1);
        });
      }
}

static void all_mamba() {
  for (int64_t T : {1, 5, 40})
    for (int64_t N : {1, 7, 16})
      for (int64_t E : {3, 67, 130}) {
        const Floats u = drawn(T * E), dt = drawn(T * E, 3.f), z = drawn(T * E), B = drawn(T * N), C = drawn(T * N);
        const Floats A = drawn(E * N), bias = drawn(E), D = drawn(E), h = drawn(E * N);
        compare("mamba_mix", 2 * T * E + E * N, false, false, [&](int set, void *to) {
          float *y = static_cast<float *>(to), *size = y + T * E, *next = size + T * E;
          call(mamba_mix_words[set], u.data(), dt.data(), z.data(), B.data(), C.data(), A.data(), bias.data(), D.data(),
               h.data(), 0, y, size, next, 1, T, E, N, 1);
        });
      }
}

static void all_delta() {
  for (int64_t T : {1, 5, 16, 17, 70})
    for (int64_t K : {8, 64})
      for (int64_t V : {17, 64}) {
        const int64_t H = 2, width = 2 * K + H * V;
        const Floats rows = drawn(T * width), a = drawn(T * H), b = drawn(T * H), z = drawn(T * H * V), A = drawn(H);
        const Floats bias = drawn(H), gain = drawn(V), S = drawn(H * K * V);
        compare("gated_delta", T * H * (2 * V + K + 1) + H * K * V, false, false, [&](int set, void *to) {
          float *y = static_cast<float *>(to), *k = y + T * H * V, *delta = k + T * H * K, *g = delta + T * H * V;
          (T > 16 ? gated_delta_chunk : gated_delta_mix)[set](rows.data(), a.data(), b.data(), z.data(), A.data(),
               bias.data(), gain.data(), S.data(), nullptr, y, k, delta, g, g + T * H, 1, T, H, 1, K, V, 0, 1.f, 1e-6f,
               1e-5f, 1);
        });
      }
}

int main() {
  if (fluvial_dotprod()) sets = 3;
  const auto run = [](const char *name, void (*all)()) {
    const int64_t before[] = {same, near};
    all();
    std::printf("  %-11s %5d times the same, %d nearly\n", name, int(same - before[0]), int(near - before[1]));
  };
  run("codes", all_codes), run("dense", all_dense), run("low_rank", all_low_rank), run("rms_norm", all_rows);
  run("attend", all_attend), run("mamba_mix", all_mamba), run("gated_delta", all_delta);
  std::printf("%s%s against the plain form: %d wrong\n", SETS[1], sets > 2 ? " and dotprod" : "", int(wrong));
  return wrong != 0;
}
