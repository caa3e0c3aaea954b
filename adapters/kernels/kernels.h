// What every kernel file includes: a plain C ABI, no Python and no torch headers.
// A file is compiled once per instruction set. KERNEL(name) exports fluvial_<name>_<set>; everything else is in an
// anonymous namespace, so that the copies never mix. Pointers are contiguous row-major fp32; the caller
// (adapters/chips) has checked the shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// The vectors of 64-bit ARM, and its products of bytes, unless the plain form is asked for (tests/kernels/arm).
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(FLUVIAL_PLAIN)
#define FLUVIAL_NEON
#if defined(__ARM_FEATURE_DOTPROD)
#define FLUVIAL_DOT
#endif
#endif

#define FLUVIAL_JOIN_(name, set) fluvial_##name##_##set
#define FLUVIAL_JOIN(name, set) FLUVIAL_JOIN_(name, set)
#define KERNEL(name) extern "C" __attribute__((visibility("default"))) void FLUVIAL_JOIN(name, FLUVIAL_SET)
#define INLINE static inline __attribute__((always_inline))

// After a kernel, RECORDED(name) exports fluvial_<name>_words_<set>: the same with its arguments in an array of 64-bit
// words (a float in the lower half), as program.cpp calls it.
#define RECORDED(name)                                                                                        \
  extern "C" __attribute__((visibility("default"))) void FLUVIAL_JOIN(name##_words, FLUVIAL_SET)(             \
      const int64_t *words) {                                                                                 \
    call_with_words(FLUVIAL_JOIN(name, FLUVIAL_SET), words);                                                  \
  }

namespace {

template <typename T>
INLINE T from_word(int64_t word) {
  if constexpr (std::is_pointer<T>::value) {
    return reinterpret_cast<T>(word);
  } else if constexpr (std::is_same<T, float>::value) {
    const uint32_t bits = static_cast<uint32_t>(word);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  } else {
    return word;
  }
}

template <typename... A, size_t... I>
INLINE void unpacked(void (*kernel)(A...), const int64_t *words, std::index_sequence<I...>) {
  kernel(from_word<A>(words[I])...);
}

template <typename... A>
INLINE void call_with_words(void (*kernel)(A...), const int64_t *words) {
  unpacked(kernel, words, std::index_sequence_for<A...>{});
}

}  // namespace
