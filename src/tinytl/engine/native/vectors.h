// Vectors of lanes for the native blocks, of whatever width the processor has, and what is built of them:
// transposition, 8-bit weights, and the tile, which sums products in registers.
//
// T is float or double. A vector holds LANES<T> of them. GCC's and Clang's vector extensions compile for
// every processor; intrinsics stand only where GCC makes slow code of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define TINYTL_INLINE inline __attribute__((always_inline))
#define TINYTL_INLINE_LAMBDA __attribute__((always_inline))
// Loops over the registers of a tile must be unrolled whole, or the tile lives in memory.
#define TINYTL_UNROLL _Pragma("GCC unroll 32")

namespace tinytl {

#if defined(__AVX512F__)
constexpr long VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr long VECTOR_BYTES = 32;
#else
constexpr long VECTOR_BYTES = 16;
#endif

// A tile sums TILE pixels of two vectors of channels: with the operands it fills the registers, of which
// there are 32 or 16. Maps of 112, 56, 28 and 14 pixels a side are multiples of 14.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE = 14;
#else
constexpr int TILE = 6;
#endif

template <typename T>
constexpr long LANES = VECTOR_BYTES / sizeof(T);

template <typename T>
struct VectorTypes {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  // Aligned as one vector, so that both can stand in the same buffer.
  typedef double wide
      __attribute__((vector_size(VECTOR_BYTES / sizeof(T) * sizeof(double)), aligned(VECTOR_BYTES)));
};
template <typename T>
using Vector = typename VectorTypes<T>::type;
template <typename T>
using Wide = typename VectorTypes<T>::wide;  // as many lanes, in double

constexpr long ceil_div(long a, long b) { return (a + b - 1) / b; }
constexpr long smaller_of(long a, long b) { return a < b ? a : b; }

// --- loads and stores ------------------------------------------------------------------------------

template <typename T>
TINYTL_INLINE Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T>
TINYTL_INLINE void store(T* p, const Vector<T>& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <typename T>
TINYTL_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

// The first `n` lanes, 0 <= n; the others are zero, and nothing behind them is read.
template <typename T>
TINYTL_INLINE Vector<T> load_part(const T* p, long n) {
  if (n >= LANES<T>) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vector<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vector<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#else
  T lanes[LANES<T>] = {};
  for (long i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}

// Stores the first `n` lanes, 0 <= n.
template <typename T>
TINYTL_INLINE void store_part(T* p, const Vector<T>& v, long n) {
  if (n >= LANES<T>) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
#else
  T lanes[LANES<T>];
  store(lanes, v);
  for (long i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

template <typename T>
TINYTL_INLINE Wide<T> widen(const Vector<T>& v) {
  return __builtin_convertvector(v, Wide<T>);
}

template <typename T>
TINYTL_INLINE Vector<T> narrow(const Wide<T>& v) {
  return __builtin_convertvector(v, Vector<T>);
}

// --- clamps ----------------------------------------------------------------------------------------

// Clamped to (low, high). Not-a-number stays what it is, as in PyTorch.
template <typename T>
TINYTL_INLINE Vector<T> clamp(const Vector<T>& z, const Vector<T>& low, const Vector<T>& high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)z));
  else
    return (Vector<T>)_mm512_min_pd((__m512d)high, _mm512_max_pd((__m512d)low, (__m512d)z));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)z));
  else
    return (Vector<T>)_mm256_min_pd((__m256d)high, _mm256_max_pd((__m256d)low, (__m256d)z));
#else
  const Vector<T> raised = low > z ? low : z;
  return high < raised ? high : raised;
#endif
}

// g where low < z < high, else 0: the gradient of a clamp.
template <typename T>
TINYTL_INLINE Vector<T> gate(const Vector<T>& g, const Vector<T>& z, const Vector<T>& low,
                             const Vector<T>& high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __mmask16 above = _mm512_cmp_ps_mask((__m512)z, (__m512)low, _CMP_GT_OQ);
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(above, (__m512)z, (__m512)high, _CMP_LT_OQ);
    return (Vector<T>)_mm512_maskz_mov_ps(inside, (__m512)g);
  } else {
    const __mmask8 above = _mm512_cmp_pd_mask((__m512d)z, (__m512d)low, _CMP_GT_OQ);
    const __mmask8 inside = _mm512_mask_cmp_pd_mask(above, (__m512d)z, (__m512d)high, _CMP_LT_OQ);
    return (Vector<T>)_mm512_maskz_mov_pd(inside, (__m512d)g);
  }
#else
  return (z > low) & (z < high) ? g : Vector<T>{};
#endif
}

// --- transposition ---------------------------------------------------------------------------------

// Lane `lane` of one of the two results of exchanging blocks of B lanes between two vectors of n lanes.
constexpr int exchanged(int lane, int block, int n, bool second) {
  if (!second) return lane & block ? n + lane - block : lane;
  return lane & block ? n + lane : lane + block;
}

template <int B, bool SECOND, typename V, int... I>
TINYTL_INLINE V exchange(const V& a, const V& b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, exchanged(I, B, int(sizeof...(I)), SECOND)...);
}

template <int B, typename T>
TINYTL_INLINE void transpose_blocks(Vector<T> (&rows)[LANES<T>]) {
  constexpr int n = int(LANES<T>);
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
  TINYTL_UNROLL for (int i = 0; i < n; i++) {
    if (i & B) continue;
    const Vector<T> a = rows[i], b = rows[i + B];
    rows[i] = exchange<B, false>(a, b, lanes);
    rows[i + B] = exchange<B, true>(a, b, lanes);
  }
  if constexpr (2 * B < n) transpose_blocks<2 * B, T>(rows);
}

// rows[i][j] becomes rows[j][i].
template <typename T>
TINYTL_INLINE void transpose(Vector<T> (&rows)[LANES<T>]) {
  transpose_blocks<1, T>(rows);
}

// --- weights ---------------------------------------------------------------------------------------

// LANES<T> int8 codes as T.
template <typename T>
TINYTL_INLINE Vector<T> convert(const int8_t* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  else
    return (Vector<T>)_mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  else
    return (Vector<T>)_mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(p)));
#else
  T lanes[LANES<T>];
  for (long i = 0; i < LANES<T>; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}

// A frozen weight as it is stored; the fields are set in Python. Exactly one of the first three is set.
template <typename T>
struct Weight {
  const int8_t* codes;      // codes * scale + shift
  const uint8_t* indices;   // table[index] * scale + shift
  const T* values;          // value * scale + shift
  const T* table;           // (256)
  const T *scale, *shift;   // of each output channel; shift may be null, for none

  // LANES<T> successive elements from `at` on, before scale and shift.
  TINYTL_INLINE Vector<T> load_at(long at) const {
    if (codes) return convert<T>(codes + at);
    return values ? load(values + at) : look_up(at);
  }

 private:
  // Not inlined: it is long, and is called where rows of vectors are loaded.
  __attribute__((noinline)) Vector<T> look_up(long at) const {
    T lanes[LANES<T>];
    for (long i = 0; i < LANES<T>; i++) lanes[i] = table[indices[at + i]];
    return load(lanes);
  }
};

// --- tiles -----------------------------------------------------------------------------------------

// Calls f<P>(start) for tiles of P pixels, at most TILE, that make up n. double is there for proofs, not for
// speed, and compiles sooner with small tiles.
template <typename T, class F>
TINYTL_INLINE void for_tiles(long n, F&& f) {
  constexpr int whole = sizeof(T) == sizeof(float) ? TILE : 3, half = whole / 2;
  long p = 0;
  for (; p + whole <= n; p += whole) f.template operator()<whole>(p);
  if constexpr (half > 1)
    if (p + half <= n) f.template operator()<half>(p), p += half;
  if constexpr (half > 4)
    if (p + 4 <= n) f.template operator()<4>(p), p += 4;
  for (; p < n; p++) f.template operator()<1>(p);
}

template <typename T, int P, int N>
TINYTL_INLINE void clear(Vector<T> (&tile)[P][N]) {
  TINYTL_UNROLL for (int p = 0; p < P; p++) TINYTL_UNROLL for (int n = 0; n < N; n++) tile[p][n] = Vector<T>{};
}

// tile[p][n] += sum over k below `count` of w[k][n] * x[k * row + p * STEP], w being (count, N, lanes).
template <long STEP, typename T, int P, int N>
TINYTL_INLINE void add_products(const T* x, long row, long count, const T* w, Vector<T> (&tile)[P][N]) {
  for (long k = 0; k < count; k++) {
    Vector<T> weights[N];
    TINYTL_UNROLL for (int n = 0; n < N; n++) weights[n] = load(w + (k * N + n) * LANES<T>);
    TINYTL_UNROLL for (int p = 0; p < P; p++) {
      const Vector<T> value = broadcast(x[k * row + p * STEP]);
      TINYTL_UNROLL for (int n = 0; n < N; n++) tile[p][n] += weights[n] * value;
    }
  }
}

// Writes `pixels` rows, at most LANES<T>, of one vector of channels to planes of `area` pixels, or adds them;
// `out` is the first of `channels` channels at the first pixel.
template <typename T>
TINYTL_INLINE void store_planes(Vector<T> (&rows)[LANES<T>], long pixels, T* out, long area, long channels,
                                bool add) {
  transpose<T>(rows);
  TINYTL_UNROLL for (int c = 0; c < LANES<T>; c++) {
    if (c >= channels) break;
    T* target = out + c * area;
    if (add) rows[c] += load_part(target, pixels);
    store_part(target, rows[c], pixels);
  }
}

// The same of rows in memory, a vector every `step` elements.
template <typename T>
__attribute__((noinline)) void store_planes_from(const T* from, long step, long pixels, T* out, long area,
                                                 long channels, bool add) {
  Vector<T> rows[LANES<T>];
  TINYTL_UNROLL for (int i = 0; i < LANES<T>; i++)
    rows[i] = i < pixels ? load(from + i * step) : Vector<T>{};
  store_planes<T>(rows, pixels, out, area, channels, add);
}

// The other way: `pixels` pixels, at most LANES<T>, of `channels` planes, at most as many, to rows of lanes.
template <typename T>
__attribute__((noinline)) void load_planes(const T* x, long pixels, long area, long channels, T* out) {
  Vector<T> rows[LANES<T>];
  TINYTL_UNROLL for (int c = 0; c < LANES<T>; c++)
    rows[c] = c < channels ? load_part(x + c * area, pixels) : Vector<T>{};
  transpose<T>(rows);
  TINYTL_UNROLL for (int i = 0; i < LANES<T>; i++) {
    if (i >= pixels) break;
    store(out + i * LANES<T>, rows[i]);
  }
}

// Writes or adds a tile of P pixels of N vectors of channels. Smaller tiles than the largest are seldom, and
// go through memory to a function that they share.
template <typename T, int P, int N>
TINYTL_INLINE void store_tile(const Vector<T> (&tile)[P][N], T* out, long area, long channels, bool add) {
  constexpr int L = int(LANES<T>);
  if constexpr (P == TILE && P <= L) {
    TINYTL_UNROLL for (int n = 0; n < N; n++) {
      Vector<T> rows[L];
      TINYTL_UNROLL for (int i = 0; i < L; i++) rows[i] = i < P ? tile[i < P ? i : 0][n] : Vector<T>{};
      store_planes<T>(rows, P, out + n * L * area, area, channels - n * L, add);
    }
  } else {
    T rows[P * N * L];
    TINYTL_UNROLL for (int p = 0; p < P; p++) TINYTL_UNROLL for (int n = 0; n < N; n++)
      store(rows + (p * N + n) * L, tile[p][n]);
    for (int n = 0; n < N; n++)
      for (int p = 0; p < P; p += L)
        store_planes_from<T>(rows + (p * N + n) * L, N * L, smaller_of(L, P - p), out + n * L * area + p, area,
                             channels - n * L, add);
  }
}

// The next `count` elements of a buffer, which moves on to a multiple of 64 bytes.
template <typename T>
T* take(T*& buffer, long count) {
  constexpr long step = 64 / sizeof(T);
  T* taken = buffer;
  buffer += ceil_div(count, step) * step;
  return taken;
}

}  // namespace tinytl
