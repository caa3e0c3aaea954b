// What every kernel file includes: a plain C ABI, no Python and no torch headers.
// A file is compiled once per instruction set. KERNEL(name) exports fluvial_<name>_<set>; everything else is in an
// anonymous namespace, so that the copies never mix. Pointers are contiguous row-major fp32; the caller
// (adapters/chips) has checked the shapes.
#pragma once

#include <cstdint>

#define FLUVIAL_JOIN_(name, set) fluvial_##name##_##set
#define FLUVIAL_JOIN(name, set) FLUVIAL_JOIN_(name, set)
#define KERNEL(name) extern "C" __attribute__((visibility("default"))) void FLUVIAL_JOIN(name, FLUVIAL_SET)
#define INLINE static inline __attribute__((always_inline))
