// What check.cpp gives to every set of a kernel, and how it judges what they put out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

typedef std::vector<float> Floats;
typedef std::vector<uint16_t> Halves;
typedef void Recorded(const int64_t *words);  // kernels.h

constexpr int MOST = 3;
static const char *const SETS[MOST] = {"plain", "baseline", "dotprod"};
static int sets = 2;  // that this CPU runs
static int64_t same = 0, near = 0, wrong = 0;
static std::mt19937 random_bits(1);

template <typename T>
int64_t word(T value) {
  if constexpr (std::is_pointer<T>::value) {
    return reinterpret_cast<int64_t>(value);
  } else if constexpr (std::is_same<T, float>::value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
  } else {
    return value;
  }
}
template <typename... A>
void call(Recorded *kernel, A... arguments) {
  const int64_t words[] = {word(arguments)...};
  kernel(words);
}

inline Floats drawn(int64_t n, float size = 1.f) {
  std::normal_distribution<float> normal;
  Floats values(n);
  for (float &value : values) value = size * normal(random_bits);
  return values;
}
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}
inline float from_bf16(uint16_t bits) {
  const uint32_t all = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &all, 4);
  return value;
}
inline uint16_t to_fp16(float value) {
  const __fp16 half = static_cast<__fp16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float from_fp16(uint16_t bits) {
  __fp16 value;
  std::memcpy(&value, &bits, 2);
  return value;
}
inline Halves to_halves(const Floats &values, bool bf16 = true) {
  Halves bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), bf16 ? to_bf16 : to_fp16);
  return bits;
}
inline Floats from_halves(const Halves &bits, bool bf16 = true) {
  Floats values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), bf16 ? from_bf16 : from_fp16);
  return values;
}

// Values as a kernel takes them, in fp32 or bf16, and the same in fp32.
struct Stored {
  Floats wide;
  Halves halves;
  bool bf16;

  Stored(Floats values, bool bf16) : wide(std::move(values)), halves(bf16 ? to_halves(wide) : Halves()), bf16(bf16) {
    if (bf16) wide = from_halves(halves);
  }
  const void *data() const { return bf16 ? static_cast<const void *>(halves.data()) : wide.data(); }
};

// run(set, outputs) for every set: its n outputs, in fp32 or bf16, must be the plain ones, bit for bit where `exact`.
// Gives the plain ones.
template <typename F>
Floats compare(const char *what, int64_t n, bool bf16, bool exact, F run) {
  Floats first;
  for (int set = 0; set < sets; ++set) {
    Floats given(n, 0.f);
    Halves halves(bf16 ? n : 0);
    run(set, bf16 ? static_cast<void *>(halves.data()) : given.data());
    if (bf16) given = from_halves(halves);
    if (set == 0) {
      first = given;
      continue;
    }
    float largest = 0.f, off = 0.f;
    bool equal = true;
    for (int64_t i = 0; i < n; ++i) {
      const float a = first[i], b = given[i];
      if (std::isnan(a) && std::isnan(b)) continue;
      equal = equal && std::memcmp(&a, &b, 4) == 0;
      largest = std::max(largest, std::fabs(a));
      off = std::isfinite(a - b) ? std::max(off, std::fabs(a - b)) : INFINITY;
    }
    const bool well = equal || (!exact && off <= 2e-6f * largest);
    ++(equal ? same : well ? near : wrong);
    if (!well) std::printf("%s: %s is off by %g of %g\n", what, SETS[set], off, largest);
  }
  return first;
}

// y [M, N] against x W^T in double: a value of x counts as rounded by `step` of its row's largest or by `least`.
inline void in_double(const char *what, const Floats &y, const Floats &x, const std::vector<double> &W, int64_t K,
                      double step, double least, bool bf16) {
  const int64_t N = static_cast<int64_t>(W.size()) / K, M = static_cast<int64_t>(x.size()) / K;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      const float *row = x.data() + m * K, got = y[m * N + n];
      double sum = 0, sizes = 0, largest = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double w = W[n * K + k];
        sum += row[k] * w, sizes += std::fabs(w), largest = std::max(largest, std::fabs(static_cast<double>(row[k])));
      }
      const double allowed = (step * largest + least) * sizes + (bf16 ? std::fabs(sum) / 250 : 0);
      if (std::isfinite(sum) ? std::fabs(got - sum) <= allowed : !std::isfinite(got)) continue;
      ++wrong, std::printf("%s: row %d, output %d is %g, not %g\n", what, int(m), int(n), got, sum);
      return;
    }
}
