// Normalisation with activation, and the depthwise convolution, each in one pass over a slice; then, for
// weights, the expansion of 8-bit codes and standardisation.
//
// A slice is a contiguous (N, C, H, W) tensor that fits a cache: some images, some channels, whole maps.
// An activation is a clamp to (low, high): ReLU (0, inf), ReLU6 (0, 6), none (-inf, inf). kernels.py
// holds the same functions in plain PyTorch. No header of torch is included, so that this file compiles
// in seconds.

#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr long CHUNK = 1024;  // elements summed in their own type; the chunks' sums are added in double
constexpr long PARALLEL_FROM = 16384;  // elements; for fewer, threads cost more than they save
#ifdef __AVX512F__
constexpr long VECTOR_BYTES = 64;
#else
constexpr long VECTOR_BYTES = 32;
#endif
constexpr long TILE = 4 * VECTOR_BYTES / 4;  // outputs that correlate computes at a time, at most (float)

template <typename T>
double sum_of(const T* x, long n) {
  double total = 0;
  for (long start = 0; start < n; start += CHUNK) {
    const long stop = start + CHUNK < n ? start + CHUNK : n;
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (long i = start; i < stop; i++) part += x[i];
    total += part;
  }
  return total;
}

template <typename T>
double squares_about(const T* x, long n, T mean) {
  double total = 0;
  for (long start = 0; start < n; start += CHUNK) {
    const long stop = start + CHUNK < n ? start + CHUNK : n;
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (long i = start; i < stop; i++) part += (x[i] - mean) * (x[i] - mean);
    total += part;
  }
  return total;
}

// Normalises x in place to (x - mean) * rstd, with statistics over `per_group` channels of one image, and
// writes rstd (N, groups). Variances of channels are combined by Chan's formula.
template <typename T>
void group_normalize(T* x, T* rstd, long images, long channels, long per_group, long area, double eps) {
  const long planes = images * channels, groups = planes / per_group;
  std::vector<double> mean(planes), squares(planes), shift(groups);
#pragma omp parallel
  {
#pragma omp for
    for (long p = 0; p < planes; p++) {
      mean[p] = sum_of(x + p * area, area) / area;
      squares[p] = squares_about(x + p * area, area, T(mean[p]));
    }
#pragma omp for
    for (long g = 0; g < groups; g++) {
      double center = 0, total = 0;
      for (long p = g * per_group; p < (g + 1) * per_group; p++) center += mean[p] / per_group;
      for (long p = g * per_group; p < (g + 1) * per_group; p++)
        total += squares[p] + area * (mean[p] - center) * (mean[p] - center);
      shift[g] = center;
      rstd[g] = T(1 / std::sqrt(total / (per_group * area) + eps));
    }
#pragma omp for
    for (long p = 0; p < planes; p++) {
      T* plane = x + p * area;
      const T m = T(shift[p / per_group]), r = rstd[p / per_group];
#pragma omp simd
      for (long i = 0; i < area; i++) plane[i] = (plane[i] - m) * r;
    }
  }
}

// x = clamp(x * scale + shift), in place; scale and shift (C).
template <typename T>
void affine_clamp(T* x, const T* scale, const T* shift, T low, T high, long images, long channels, long area) {
#pragma omp parallel for
  for (long p = 0; p < images * channels; p++) {
    T* plane = x + p * area;
    const T a = scale[p % channels], b = shift[p % channels];
#pragma omp simd
    for (long i = 0; i < area; i++) {
      const T v = plane[i] * a + b;
      plane[i] = v < low ? low : (v > high ? high : v);
    }
  }
}

// Turns g, the gradient with respect to the activation's output, into that with respect to the input of
// the normalisation: with h = g * scale where the activation lets g pass,
//   rstd * (h - mean(h) - normed * mean(h * normed)),
// means over a group. per_group 0: stored statistics do not depend on the input, so that it is rstd * h,
// and rstd is (C). grad_scale, grad_shift: (N, C), sums over the map.
template <typename T>
void norm_act_backward(T* g, const T* normed, const T* scale, const T* shift, const T* rstd, T* grad_scale,
                       T* grad_shift, T low, T high, long images, long channels, long per_group, long area) {
  const long planes = images * channels, groups = per_group ? planes / per_group : 0;
  std::vector<double> mean_h(groups), mean_h_normed(groups);
#pragma omp parallel
  {
#pragma omp for
    for (long p = 0; p < planes; p++) {
      T* grad = g + p * area;
      const T* xhat = normed + p * area;
      const T a = scale[p % channels], b = shift[p % channels];
      double shift_total = 0, scale_total = 0;
      for (long start = 0; start < area; start += CHUNK) {
        const long stop = start + CHUNK < area ? start + CHUNK : area;
        T shift_part = 0, scale_part = 0;
#pragma omp simd reduction(+ : shift_part, scale_part)
        for (long i = start; i < stop; i++) {
          const T v = xhat[i] * a + b;
          const T gated = (v > low && v < high) ? grad[i] : T(0);
          grad[i] = gated;
          shift_part += gated;
          scale_part += gated * xhat[i];
        }
        shift_total += shift_part;
        scale_total += scale_part;
      }
      grad_shift[p] = T(shift_total);
      grad_scale[p] = T(scale_total);
    }
#pragma omp for
    for (long i = 0; i < groups; i++) {
      double h = 0, h_normed = 0;
      for (long p = i * per_group; p < (i + 1) * per_group; p++) {
        h += double(scale[p % channels]) * grad_shift[p];
        h_normed += double(scale[p % channels]) * grad_scale[p];
      }
      mean_h[i] = h / (per_group * area);
      mean_h_normed[i] = h_normed / (per_group * area);
    }
#pragma omp for
    for (long p = 0; p < planes; p++) {
      T* grad = g + p * area;
      const T* xhat = normed + p * area;
      const T r = per_group ? rstd[p / per_group] : rstd[p % channels];
      const T a = scale[p % channels] * r;
      const T h = per_group ? T(mean_h[p / per_group]) * r : T(0);
      const T h_normed = per_group ? T(mean_h_normed[p / per_group]) * r : T(0);
#pragma omp simd
      for (long i = 0; i < area; i++) grad[i] = grad[i] * a - h - xhat[i] * h_normed;
    }
  }
}

// out[i] = sum over taps k of weight[k] * in[i + offset[k]], for i < count, rounded up to whole tiles.
// Four named vectors hold a tile's sums in registers; compilers keep an array in memory, five times slower.
template <typename T>
void correlate(const T* in, const long* offset, const T* weight, long taps, long count, T* out) {
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  constexpr long lanes = VECTOR_BYTES / sizeof(T);
  for (long start = 0; start < count; start += 4 * lanes) {
    Vector a = {}, b = {}, c = {}, d = {};
    for (long k = 0; k < taps; k++) {
      const T* source = in + start + offset[k];
      const T w = weight[k];
      a += w * *reinterpret_cast<const Vector*>(source);
      b += w * *reinterpret_cast<const Vector*>(source + lanes);
      c += w * *reinterpret_cast<const Vector*>(source + 2 * lanes);
      d += w * *reinterpret_cast<const Vector*>(source + 3 * lanes);
    }
    Vector* target = reinterpret_cast<Vector*>(out + start);
    target[0] = a, target[1] = b, target[2] = c, target[3] = d;
  }
}

// A padded map, split into one plane per phase (row and column modulo the stride), so that a convolution
// with a stride, too, reads its input contiguously.
struct Layout {
  long height, width, kernel, stride, padding, out_height, out_width, row, plane;
  Layout(long h, long w, long k, long s, long p)
      : height(h), width(w), kernel(k), stride(s), padding(p),
        out_height((h + 2 * p - k) / s + 1), out_width((w + 2 * p - k) / s + 1) {
    row = (w + 2 * p + s - 1) / s;
    plane = row * ((h + 2 * p + s - 1) / s);
  }
  long size() const { return plane * stride * stride; }
  long count() const { return out_height * row; }  // outputs, and unused values between their rows
  // Where row i, column j of the padded map lies.
  long offset(long i, long j) const {
    return ((i % stride) * stride + j % stride) * plane + (i / stride) * row + j / stride;
  }
};

// Depthwise convolution of clamp(x * scale + shift): (N, C, H, W) -> (N, C, H', W'); weight (C, 1, k, k).
template <typename T>
void act_depthwise(const T* x, const T* scale, const T* shift, T low, T high, const T* weight, T* out,
                   long images, long channels, long h, long w, long kernel, long stride, long padding) {
  const Layout at(h, w, kernel, stride, padding);
  std::vector<long> offsets;
  for (long i = 0; i < kernel; i++)
    for (long j = 0; j < kernel; j++) offsets.push_back(at.offset(i, j));
#pragma omp parallel
  {
    std::vector<T> padded(at.size() + kernel * at.row + 2 * TILE), flat(at.count() + TILE), line(w);
#pragma omp for
    for (long p = 0; p < images * channels; p++) {
      const T a = scale[p % channels], b = shift[p % channels];
      for (long y = 0; y < h; y++) {
        const T* source = x + (p * h + y) * w;
#pragma omp simd
        for (long i = 0; i < w; i++) {
          const T v = source[i] * a + b;
          line[i] = v < low ? low : (v > high ? high : v);
        }
        if (stride == 1) {
          std::memcpy(&padded[at.offset(y + padding, padding)], line.data(), w * sizeof(T));
        } else {
          for (long phase = 0; phase < stride; phase++) {
            T* target = &padded[at.offset(y + padding, padding + phase)];
            for (long i = phase, k = 0; i < w; i += stride, k++) target[k] = line[i];
          }
        }
      }
      correlate(padded.data(), offsets.data(), weight + (p % channels) * kernel * kernel, kernel * kernel,
                at.count(), flat.data());
      for (long y = 0; y < at.out_height; y++)
        std::memcpy(out + (p * at.out_height + y) * at.out_width, &flat[y * at.row], at.out_width * sizeof(T));
    }
  }
}

// Gradient with respect to the input of the depthwise convolution: (N, C, H', W') -> (N, C, H, W).
template <typename T>
void depthwise_backward(const T* g, const T* weight, T* grad_x, long images, long channels, long h, long w,
                        long kernel, long stride, long padding) {
  const Layout at(h, w, kernel, stride, padding);
  const long margin = kernel * at.row + kernel;  // zeros before the gradient: taps reach backwards
#pragma omp parallel
  {
    std::vector<T> flat(margin + at.plane + margin + 2 * TILE), phase_plane(at.plane + TILE), taps;
    std::vector<long> offsets;
#pragma omp for
    for (long p = 0; p < images * channels; p++) {
      for (long y = 0; y < at.out_height; y++)
        std::memcpy(&flat[margin + y * at.row], g + (p * at.out_height + y) * at.out_width,
                    at.out_width * sizeof(T));
      const T* filter = weight + (p % channels) * kernel * kernel;
      for (long py = 0; py < stride; py++)
        for (long px = 0; px < stride; px++) {
          taps.clear();
          offsets.clear();
          for (long i = py; i < kernel; i += stride)
            for (long j = px; j < kernel; j += stride) {
              taps.push_back(filter[i * kernel + j]);
              offsets.push_back(margin - (i / stride) * at.row - j / stride);
            }
          correlate(flat.data(), offsets.data(), taps.data(), long(taps.size()), at.plane, phase_plane.data());
          // this phase gives the rows y with (y + padding) % stride == py, and likewise the columns
          const long y0 = ((py - padding) % stride + stride) % stride;
          const long x0 = ((px - padding) % stride + stride) % stride;
          for (long y = y0; y < h; y += stride) {
            const T* source = &phase_plane[((y + padding) / stride) * at.row + (x0 + padding) / stride];
            T* target = grad_x + (p * h + y) * w;
            if (stride == 1)
              std::memcpy(target, source, w * sizeof(T));
            else
              for (long x = x0, k = 0; x < w; x += stride, k++) target[x] = source[k];
          }
        }
    }
  }
}

// Expands the 8-bit codes of a weight, (rows, columns), to floating point: codes * scale + shift. There is
// one scale and shift (or null: none) per row, or per column if by_column.
template <typename T>
void expand_codes(const T* scale, const signed char* codes, const T* shift, T* out, long rows, long columns,
                  long by_column) {
#pragma omp parallel for if (rows * columns > PARALLEL_FROM)
  for (long r = 0; r < rows; r++) {
    const signed char* code = codes + r * columns;
    T* target = out + r * columns;
    if (by_column) {
#pragma omp simd
      for (long i = 0; i < columns; i++) target[i] = T(code[i]) * scale[i] + (shift ? shift[i] : T(0));
    } else {
      const T a = scale[r], b = shift ? shift[r] : T(0);
#pragma omp simd
      for (long i = 0; i < columns; i++) target[i] = T(code[i]) * a + b;
    }
  }
}

// Weight standardisation of each row: out = (w - mean) / (std + eps), std the unbiased standard deviation.
// Where grad, the gradient with respect to that, is given, out is the gradient with respect to w instead.
template <typename T>
void standardize(const T* weight, const T* grad, T* out, long rows, long n, double eps) {
#pragma omp parallel for if (rows * n > PARALLEL_FROM)
  for (long r = 0; r < rows; r++) {
    const T* w = weight + r * n;
    T* target = out + r * n;
    const double mean = sum_of(w, n) / n;
    const double std_dev = std::sqrt(squares_about(w, n, T(mean)) / (n - 1));
    const T m = T(mean), scale = T(1 / (std_dev + eps));
    if (!grad) {
#pragma omp simd
      for (long i = 0; i < n; i++) target[i] = (w[i] - m) * scale;
      continue;
    }
    const T* g = grad + r * n;
    T along = 0;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < n; i++) along += g[i] * (w[i] - m);
    const T mean_grad = T(sum_of(g, n) / n) * scale;
    const T factor = std_dev > 0 ? T(along * scale * scale / (std_dev * (n - 1))) : T(0);
#pragma omp simd
    for (long i = 0; i < n; i++) target[i] = g[i] * scale - mean_grad - (w[i] - m) * factor;
  }
}

}  // namespace

// What compiled_kernels.py calls, for float32 or float64.
#define FOR_TYPE(T, suffix)                                                                                   \
  extern "C" void group_normalize_##suffix(T* x, T* rstd, long n, long c, long per_group, long area,          \
                                           double eps) {                                                      \
    group_normalize<T>(x, rstd, n, c, per_group, area, eps);                                                  \
  }                                                                                                           \
  extern "C" void affine_clamp_##suffix(T* x, const T* scale, const T* shift, double low, double high,        \
                                        long n, long c, long area) {                                          \
    affine_clamp<T>(x, scale, shift, T(low), T(high), n, c, area);                                            \
  }                                                                                                           \
  extern "C" void norm_act_backward_##suffix(T* g, const T* normed, const T* scale, const T* shift,           \
                                             const T* rstd, T* grad_scale, T* grad_shift, double low,         \
                                             double high, long n, long c, long per_group, long area) {        \
    norm_act_backward<T>(g, normed, scale, shift, rstd, grad_scale, grad_shift, T(low), T(high), n, c,        \
                         per_group, area);                                                                    \
  }                                                                                                           \
  extern "C" void act_depthwise_##suffix(const T* x, const T* scale, const T* shift, double low, double high, \
                                         const T* weight, T* out, long n, long c, long h, long w, long k,     \
                                         long stride, long padding) {                                         \
    act_depthwise<T>(x, scale, shift, T(low), T(high), weight, out, n, c, h, w, k, stride, padding);          \
  }                                                                                                           \
  extern "C" void depthwise_backward_##suffix(const T* g, const T* weight, T* grad_x, long n, long c,         \
                                              long h, long w, long k, long stride, long padding) {            \
    depthwise_backward<T>(g, weight, grad_x, n, c, h, w, k, stride, padding);                                 \
  }                                                                                                           \
  extern "C" void expand_codes_##suffix(const T* scale, const signed char* codes, const T* shift, T* out,     \
                                        long rows, long columns, long by_column) {                            \
    expand_codes<T>(scale, codes, shift, out, rows, columns, by_column);                                      \
  }                                                                                                           \
  extern "C" void standardize_##suffix(const T* weight, const T* grad, T* out, long rows, long n,             \
                                       double eps) {                                                          \
    standardize<T>(weight, grad, out, rows, n, eps);                                                          \
  }

#if defined(TINYTL_FLOAT32)
FOR_TYPE(float, float32)
#else
FOR_TYPE(double, float64)
#endif
