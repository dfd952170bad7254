// CUDA C++ for a host compiler: what a kernel may name, and blocks of fibres.
//
// Each thread of a block is a fibre with a stack of its own; a barrier hands over to
// the next, and opens when all have come. Blocks run one after another, the threads
// of every second block backwards, so that a missing barrier shows.
#include <cstddef>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // C++17's Bessel functions: a third of the time
#include <math.h>  // which, unlike cmath, has the functions for float too
#include <setjmp.h>
#include <ucontext.h>

#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("shared_memory")))
#define warpSize 32

// ---- vectors -------------------------------------------------------------------
#define VECTORS(T, name, two, four)                                    \
  struct alignas(two) name##2 { T x, y; };                             \
  struct name##3 { T x, y, z; };                                       \
  struct alignas(four) name##4 { T x, y, z, w; };                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }           \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float, 8, 16)
VECTORS(double, double, 16, 16)
VECTORS(int, int, 8, 16)
VECTORS(unsigned, uint, 8, 16)
VECTORS(short, short, 4, 8)
VECTORS(unsigned short, ushort, 4, 8)
VECTORS(signed char, char, 2, 4)
VECTORS(unsigned char, uchar, 2, 4)
VECTORS(long long, longlong, 16, 16)
VECTORS(unsigned long long, ulonglong, 16, 16)
typedef uint3 dim3;

// ---- types of 16 bits ----------------------------------------------------------
template <class Self, class Code>
struct Short {  // converts from and to float, as CuPy's own classes do
  unsigned short bits;
  Short() = default;
  Short(float v) : bits(Code::pack(v)) {}
  template <class N, class = std::enable_if_t<std::is_arithmetic<N>::value>>
  explicit Short(N v) : bits(Code::pack((float)v)) {}
  operator float() const { return Code::unpack(bits); }
  Self& operator+=(float v) { return (Self&)(*this = Self(float(*this) + v)); }
  Self& operator-=(float v) { return (Self&)(*this = Self(float(*this) - v)); }
};
struct HalfCode {
  static unsigned short pack(float v) {
    _Float16 half = (_Float16)v;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
  }
  static float unpack(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return (float)half;
  }
};
struct BrainCode {  // the upper half of a float, rounded to even
  static unsigned short pack(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (v != v) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  }
  static float unpack(unsigned short bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, 4);
    return v;
  }
};
#define SHORT(Name, Code)                    \
  struct Name : Short<Name, Code> {          \
    using Short<Name, Code>::Short;          \
    Name() = default;                        \
    Name(const Short<Name, Code>& v) : Short<Name, Code>(v) {} \
  };
SHORT(float16, HalfCode)
SHORT(bfloat16, BrainCode)
typedef float16 __half, half;
typedef bfloat16 __nv_bfloat16;
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __half2float(__half v) { return v; }
inline __half __float2half(float v) { return v; }
inline __half __float2half_rn(float v) { return v; }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }

// ---- numbers -------------------------------------------------------------------
using std::isfinite, std::isinf, std::isnan;
template <class A, class B> auto min(A a, B b) { return b < a ? b : a; }
template <class A, class B> auto max(A a, B b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrtf(float v) { return 1 / sqrtf(v); }
inline float rsqrt(float v) { return 1 / sqrtf(v); }
inline double rsqrt(double v) { return 1 / sqrt(v); }
#define __expf expf
#define __logf logf
#define __fdividef(a, b) ((float)(a) / (float)(b))
#define __frsqrt_rn rsqrtf
#define __fsqrt_rn sqrtf
#define __fmaf_rn fmaf
#define __fadd_rn(a, b) ((float)(a) + (float)(b))
#define __fmul_rn(a, b) ((float)(a) * (float)(b))
#define __fdiv_rn(a, b) ((float)(a) / (float)(b))
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
template <class To, class From> To same_bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &v, sizeof v);
  return to;
}
inline int __float_as_int(float v) { return same_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return same_bits<unsigned>(v); }
inline float __int_as_float(int v) { return same_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return same_bits<float>(v); }
inline long long __double_as_longlong(double v) { return same_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return same_bits<double>(v); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }
template <class T> void __stcg(T* p, T v) { *p = v; }

#define ATOMIC(name, expression)                      \
  template <class T> T name(T* p, std::common_type_t<T> v) { \
    T old = *p;                                       \
    *p = expression;                                  \
    return old;                                       \
  }
ATOMIC(atomicAdd, old + v)
ATOMIC(atomicSub, old - v)
ATOMIC(atomicMax, old < v ? v : old)
ATOMIC(atomicMin, v < old ? v : old)
ATOMIC(atomicAnd, old & v)
ATOMIC(atomicOr, old | v)
ATOMIC(atomicXor, old ^ v)
ATOMIC(atomicExch, v)
template <class T> T atomicCAS(T* p, std::common_type_t<T> is, std::common_type_t<T> v) {
  T old = *p;
  if (old == is) *p = v;
  return old;
}

#include <cupy/carray.cuh>
