// Matrix products between maps of planes (channel, pixel) and packed maps (vector of channels, pixel, lane),
// with frozen weights, which are expanded into small buffers as they are needed.
//
// A packed weight is (lanes / PACK, elements of a channel, PACK): successive elements of PACK channels.
// N is the number of vectors of channels that a tile computes at a time.
#pragma once

#include "norms.h"

namespace tinytl {

// Calls f<N>(start) for vectors that make up `count`: in pairs, and one that is left. double, which is there for
// proofs, has no pairs, and compiles sooner.
template <typename T, class F>
TINYTL_INLINE void for_pairs(long count, F&& f) {
  long start = 0;
  if constexpr (sizeof(T) == sizeof(float))
    for (; start + 2 <= count; start += 2) f.template operator()<2>(start);
  for (; start < count; start++) f.template operator()<1>(start);
}

// Where element k of the channel in `lane` stands in a packed weight of `size` elements a channel.
inline long packed_at(long lane, long k, long size) { return (lane / PACK * size + k) * PACK + lane % PACK; }

template <typename T>
TINYTL_INLINE Vector<T> shift_of(const Weight<T>& weight, long lane) {
  return weight.shift ? load(weight.shift + lane) : Vector<T>{};
}

// The weights of N vectors of channels from `lane` on: (size, N, lanes).
template <int N, typename T>
void unpack(const Weight<T>& weight, long lane, long size, T* out) {
  constexpr long L = LANES<T>;
  for (int n = 0; n < N; n++) {
    const Vector<T> scale = load(weight.scale + lane + n * L), shift = shift_of(weight, lane + n * L);
    for (long k = 0; k < size; k++)
      store(out + (k * N + n) * L, weight.load_at(packed_at(lane + n * L, k, size)) * scale + shift);
  }
}

// Transposed: of `count` lanes from `lane` on, elements in N vectors from `first` on, (count, N, lanes).
// `factor`, of the lanes from `lane` on, multiplies them.
template <int N, typename T>
void unpack_transposed(const Weight<T>& weight, long lane, long count, long size, long first, const T* factor,
                       T* out) {
  constexpr long L = LANES<T>;
  for (long at = 0; at < count; at += L) {
    const Vector<T> by = load(factor + at);
    const Vector<T> scale = load(weight.scale + lane + at) * by, shift = shift_of(weight, lane + at) * by;
    for (int n = 0; n < N; n++) {
      Vector<T> rows[L];
      TINYTL_UNROLL for (int i = 0; i < L; i++) {
        const long k = first + n * L + i;
        rows[i] = k < size ? weight.load_at(packed_at(lane + at, k, size)) * scale + shift : Vector<T>{};
      }
      transpose<T>(rows);
      TINYTL_UNROLL for (int i = 0; i < L; i++) store(out + ((at + i) * N + n) * L, rows[i]);
    }
  }
}

// y = packed maps of N vectors, (N, area, lanes), of the product of planes x, (size, area), with unpacked
// weights. `sums`, if given, sums them.
template <int N, typename T>
void pack_product(const T* x, long size, long area, const T* weights, T* y, Sums<T>* sums) {
  constexpr long L = LANES<T>;
  Sums<T> own[N];
  for_tiles<T>(area, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
    Vector<T> tile[P][N];
    clear<T>(tile);
    add_products<1, T>(x + start, area, size, weights, tile);
    TINYTL_UNROLL for (int n = 0; n < N; n++) TINYTL_UNROLL for (int p = 0; p < P; p++)
      store(y + (n * area + start + p) * L, tile[p][n]);
    if (!sums) return;
    TINYTL_UNROLL for (int n = 0; n < N; n++) {
      if (start == 0) own[n].first = tile[0][n];
      own[n].template add<P>(&tile[0][n], N);
    }
  });
  if (sums)
    for (int n = 0; n < N; n++) sums[n] = own[n];
}

// Planes of `channels` channels, in N vectors, of the product of `count` lanes of packed maps with weights
// (count, N, lanes); written, or added.
template <int N, typename T>
void plane_product(const T* maps, long count, long area, const T* weights, T* out, long channels, bool add) {
  constexpr long L = LANES<T>;
  for_tiles<T>(area, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
    Vector<T> tile[P][N];
    clear<T>(tile);
    for (long k = 0; k < count; k += L)
      add_products<L, T>(maps + k * area + start * L, 1, L, weights + k * N * L, tile);
    store_tile<T>(tile, out + start, area, channels, add);
  });
}

// Packed maps of one vector of `channels` planes.
template <typename T>
void pack_planes(const T* x, long area, long channels, T* y) {
  for (long p = 0; p < area; p += LANES<T>)
    load_planes<T>(x + p, smaller_of(LANES<T>, area - p), area, channels, y + p * LANES<T>);
}

// The planes of packed maps of one vector; written, or added.
template <typename T>
void unpack_planes(const T* y, long area, long channels, T* out, bool add) {
  constexpr long L = LANES<T>;
  for (long p = 0; p < area; p += L)
    store_planes_from<T>(y + p * L, L, smaller_of(L, area - p), out + p, area, channels, add);
}

}  // namespace tinytl
