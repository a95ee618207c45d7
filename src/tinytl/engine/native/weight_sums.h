// Gradients with respect to the trained weights of bottlenecks and heads: sums over the pixels of packed maps,
// (vector of channels, pixel, lane), and what is multiplied with them.
//
// Sums are (vector, element, lane), the elements being those that a channel of the maps is multiplied with.
// They are of some channels and one image; then they are added to the gradient in the weight's own order.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "stem.h"
#include "trained_weight.h"

namespace tinytl {

// Pixels that are summed in registers: their maps stay in the first-level cache from element to element.
constexpr long PIXEL_CHUNK = 128;

// sums[n][e] += sum over `count` pixels p of maps[n][p] * source[e * row + p * STEP].
template <long STEP, int E, int N, typename T>
TINYTL_INLINE void add_outer_tile(const T* maps, long maps_step, const T* source, long row, long count, T* sums,
                                  long sums_step) {
  constexpr long L = LANES<T>;
  Vector<T> tile[E][N];
  TINYTL_UNROLL for (int e = 0; e < E; e++) TINYTL_UNROLL for (int n = 0; n < N; n++) tile[e][n] = Vector<T>{};
  for (long p = 0; p < count; p++) {
    Vector<T> own[N];
    TINYTL_UNROLL for (int n = 0; n < N; n++) own[n] = load(maps + n * maps_step + p * L);
    TINYTL_UNROLL for (int e = 0; e < E; e++) {
      const Vector<T> value = broadcast(source[e * row + p * STEP]);
      TINYTL_UNROLL for (int n = 0; n < N; n++) tile[e][n] += own[n] * value;
    }
  }
  TINYTL_UNROLL for (int n = 0; n < N; n++) TINYTL_UNROLL for (int e = 0; e < E; e++) {
    T* target = sums + n * sums_step + e * L;
    store(target, load(target) + tile[e][n]);
  }
}

// The same of `elements` elements. Numbers of channels are mostly multiples of 8, and stems have 3 columns.
template <long STEP, int N, typename T>
void add_outer(const T* maps, long maps_step, const T* source, long row, long elements, long count, T* sums,
               long sums_step) {
  constexpr long L = LANES<T>;
  constexpr int whole = TILE > 8 ? 8 : 4;
  long e = 0;
  for (; e + whole <= elements; e += whole)
    add_outer_tile<STEP, whole, N>(maps, maps_step, source + e * row, row, count, sums + e * L, sums_step);
  for (; e + 3 <= elements; e += 3)
    add_outer_tile<STEP, 3, N>(maps, maps_step, source + e * row, row, count, sums + e * L, sums_step);
  for (; e < elements; e++)
    add_outer_tile<STEP, 1, N>(maps, maps_step, source + e * row, row, count, sums + e * L, sums_step);
}

// Adds the gradient with respect to a 1x1 convolution: `grad` (N, area, lanes), x (elements, area).
template <int N, typename T>
void add_pointwise_sums(const T* grad, const T* x, long elements, long area, T* sums) {
  constexpr long L = LANES<T>;
  for (long start = 0; start < area; start += PIXEL_CHUNK)
    add_outer<1, N, T>(grad + start * L, area * L, x + start, area, elements, smaller_of(PIXEL_CHUNK, area - start),
                       sums, elements * L);
}

// Adds that with respect to a stem: `grad` (N, out_area, lanes); `rows` is a buffer of the input rows.
template <int N, long STRIDE, typename T>
void add_stem_sums_strided(const Window& w, const T* grad, const T* x, long channels, T* rows, T* sums) {
  constexpr long L = LANES<T>;
  const long columns = stem_columns(w), row_count = channels * w.kernel;
  std::memset(rows, 0, sizeof(T) * row_count * columns);
  for (long y = 0; y < w.out_height; y++) {
    stem_rows(w, x, channels, y, rows);
    for (long r = 0; r < row_count; r++)
      add_outer<STRIDE, N, T>(grad + y * w.out_width * L, w.out_area() * L, rows + r * columns, 1, w.kernel,
                              w.out_width, sums + r * w.kernel * L, row_count * w.kernel * L);
  }
}

template <int N, typename T>
void add_stem_sums(const Window& w, const T* grad, const T* x, long channels, T* rows, T* sums) {
  if (w.stride == 1) return add_stem_sums_strided<N, 1, T>(w, grad, x, channels, rows, sums);
  add_stem_sums_strided<N, 2, T>(w, grad, x, channels, rows, sums);
}

// Adds a row of a depthwise convolution's gradient, `grad` (count, lanes), times the row of its input that a row
// of the kernel meets. K is the kernel's columns.
template <long STRIDE, int K, typename T>
TINYTL_INLINE void add_filter_row(const T* grad, const T* input, long count, T* sums) {
  constexpr long L = LANES<T>, PIXELS_AT_A_TIME = 4;
  Vector<T> tile[K];
  TINYTL_UNROLL for (int k = 0; k < K; k++) tile[k] = Vector<T>{};
  const auto add = [&]<int P>(long x) TINYTL_INLINE_LAMBDA {
    TINYTL_UNROLL for (int p = 0; p < P; p++) {
      const Vector<T> own = load(grad + (x + p) * L);
      TINYTL_UNROLL for (int k = 0; k < K; k++) tile[k] += own * load(input + ((x + p) * STRIDE + k) * L);
    }
  };
  long x = 0;
  for (; x + PIXELS_AT_A_TIME <= count; x += PIXELS_AT_A_TIME) add.template operator()<PIXELS_AT_A_TIME>(x);
  for (; x < count; x++) add.template operator()<1>(x);
  TINYTL_UNROLL for (int k = 0; k < K; k++) store(sums + k * L, load(sums + k * L) + tile[k]);
}

template <long STRIDE, typename T>
void add_filter_row_of_any_kernel(const T* grad, const T* input, long kernel, long count, T* sums) {
  constexpr long L = LANES<T>;
  if (kernel == 3) return add_filter_row<STRIDE, 3, T>(grad, input, count, sums);
  if (kernel == 5) return add_filter_row<STRIDE, 5, T>(grad, input, count, sums);
  if (kernel == 7) return add_filter_row<STRIDE, 7, T>(grad, input, count, sums);
  for (long k = 0; k < kernel; k++) add_filter_row<STRIDE, 1, T>(grad, input + k * L, count, sums + k * L);
}

// Adds the gradient with respect to a depthwise convolution of act(x * factor + offset). `ring` is as in
// `filter`, `row` a buffer of a row of the gradient; sums (kernel, kernel, lanes).
template <long STRIDE, typename T>
void add_filter_sums_strided(const Window& w, const FilterGradient<T>& gradient, const Activation& act, const T* x,
                             Vector<T> factor, Vector<T> offset, T* ring, T* row, T* sums) {
  constexpr long L = LANES<T>;
  const long k = w.kernel, step = filter_columns(w) * L;
  std::memset(ring, 0, sizeof(T) * k * step);
  long filled = 0;  // input rows that have entered the ring
  for (long y = 0; y < w.out_height; y++) {
    const long top = y * STRIDE - w.top;
    for (; filled < w.height && filled < top + k; filled++)
      activate<T>(act, x + filled * w.width * L, w.width, factor, offset, ring + filled % k * step + w.left * L);
    gradient.row(y * w.out_width, w.out_width, row);
    for (long i = 0; i < k; i++)
      if (top + i >= 0 && top + i < w.height)
        add_filter_row_of_any_kernel<STRIDE, T>(row, ring + (top + i) % k * step, k, w.out_width, sums + i * k * L);
  }
}

template <typename T>
void add_filter_sums(const Window& w, const FilterGradient<T>& gradient, const Activation& act, const T* x,
                     Vector<T> factor, Vector<T> offset, T* ring, T* row, T* sums) {
  if (w.stride == 1)
    return add_filter_sums_strided<1, T>(w, gradient, act, x, factor, offset, ring, row, sums);
  add_filter_sums_strided<2, T>(w, gradient, act, x, factor, offset, ring, row, sums);
}

// Adds to the gradient with respect to a weight the sums of `count` of its output channels' lanes from `lane`
// on. `natural` takes LANES<T> rows of the weight, each rounded up to vectors.
template <typename T>
void add_sums_of_rows(const Convolution<T>& conv, const Packing& packing, long lane, long count, const T* sums,
                      T* natural) {
  constexpr long L = LANES<T>;
  const long size = conv.row_size(), step = ceil_div(size, L) * L;
  for (long at = 0; at < count; at += L) {
    const T* own = sums + at * size;
    for (long k = 0; k < size; k += L) {
      Vector<T> tile[L];
      TINYTL_UNROLL for (long j = 0; j < L; j++) tile[j] = k + j < size ? load(own + (k + j) * L) : Vector<T>{};
      transpose<T>(tile);
      TINYTL_UNROLL for (long j = 0; j < L; j++) store(natural + j * step + k, tile[j]);
    }
    const long channel = packing.channel(lane + at), used = packing.used(lane + at, L);
    for (long j = 0; j < used; j++) add_row_gradient(conv, channel + j, natural + j * step);
  }
}

// The same of a 1x1 convolution whose input channels are packed, of all lanes: sums (vector, out, lanes).
// `natural` takes a row of the weight.
template <typename T>
void add_sums_of_columns(const Convolution<T>& conv, const Packing& packing, const T* sums, T* natural) {
  constexpr long L = LANES<T>;
  for (long output = 0; output < conv.out; output++) {
    for (long lane = 0; lane < packing.lanes(); lane += L)
      store_part(natural + packing.channel(lane), load(sums + lane * conv.out + output * L), packing.used(lane, L));
    add_row_gradient(conv, output, natural);
  }
}

// Lets every image add its part of a sum after the image before it, so that the sum does not depend on the
// number of threads. Images come to their parts in the order 0, 1, ...; threads sleep while they wait.
class Turns {
 public:
  explicit Turns(long images) : done(new long[images]()) {}

  template <class F>
  void take(long image, F&& f) {
    std::unique_lock<std::mutex> lock(mutex);
    if (image > 0) changed.wait(lock, [&] { return done[image - 1] > done[image]; });
    lock.unlock();
    f();
    lock.lock();
    done[image]++;
    changed.notify_all();
  }

 private:
  std::mutex mutex;
  std::condition_variable changed;
  std::unique_ptr<long[]> done;  // parts that the images have added
};

}  // namespace tinytl
