// Norms and activations over maps whose channels are the lanes of vectors.
#pragma once

#include "vectors.h"

namespace tinytl {

// --- which channels the lanes hold -----------------------------------------------------------------

// Channels are packed in sixteens on every machine, whatever its vectors: packed weights and the sizes of
// buffers do not depend on it.
constexpr long PACK = 16;

// Channels in lanes, so that a group of channels never straddles a unit of `unit_lanes` lanes, a multiple
// of PACK. A unit holds `unit_channels` channels, then padding.
struct Packing {
  long channels, unit_lanes, unit_channels;

  long lanes() const { return ceil_div(channels, unit_channels) * unit_lanes; }
  // The channel in a lane that is the first of a vector.
  long channel(long lane) const { return lane / unit_lanes * unit_channels + lane % unit_lanes; }
  // How many of the `count` lanes from `lane` on, all in one unit, hold channels.
  long used(long lane, long count) const {
    const long in_unit = unit_channels - lane % unit_lanes, in_all = channels - channel(lane);
    const long used = smaller_of(count, smaller_of(in_unit, in_all));
    return used > 0 ? used : 0;
  }
};

// --- activations -----------------------------------------------------------------------------------

enum ActivationKind : long { CLAMP = 0, SILU = 1, HARD_SWISH = 2, HARD_SIGMOID = 3, SIGMOID = 4 };

// The fields are set in Python. ReLU is a clamp to (0, inf), ReLU6 to (0, 6), none to (-inf, inf).
struct Activation {
  long kind;
  double low, high;  // of a clamp
};

// e^x. In float to two units in the last place: 2^n times a polynomial of the rest.
template <typename T>
TINYTL_INLINE Vector<T> exponential(const Vector<T>& x) {
  if constexpr (sizeof(T) == 4) {
    typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
    const Vector<T> bounded = clamp<T>(x, broadcast<T>(-87), broadcast<T>(88));
    const Vector<T> rounder = broadcast<T>(12582912);  // 1.5 * 2^23: added, it leaves no room for fractions
    const Vector<T> shifted = bounded * T(1.44269504) + rounder, n = shifted - rounder;
    const Vector<T> r = (bounded - n * T(0.693359375)) + n * T(2.12194440e-4);  // x - n ln 2
    Vector<T> p = r * T(1.9875691500e-4) + T(1.3981999507e-3);
    p = p * r + T(8.3334519073e-3);
    p = p * r + T(4.1665795894e-2);
    p = p * r + T(1.6666665459e-1);
    p = p * r + T(5.0000001201e-1);
    p = p * (r * r) + r + T(1);
    const Bits power = ((Bits)shifted - (Bits)rounder + 127) << 23;  // 2^n
    return p * (Vector<T>)power;
  } else {
    Vector<T> out = x;
    for (long i = 0; i < LANES<T>; i++) out[i] = std::exp(x[i]);
    return out;
  }
}

template <typename T>
struct Clamp {
  Vector<T> low, high;
  explicit Clamp(const Activation& act) : low(broadcast(T(act.low))), high(broadcast(T(act.high))) {}
  TINYTL_INLINE Vector<T> value(const Vector<T>& z) const { return clamp<T>(z, low, high); }
  TINYTL_INLINE Vector<T> gradient(const Vector<T>& g, const Vector<T>& z) const {
    return gate<T>(g, z, low, high);
  }
};

template <typename T>
struct Silu {  // z sigmoid(z)
  TINYTL_INLINE Vector<T> value(const Vector<T>& z) const { return z / (exponential<T>(-z) + T(1)); }
  TINYTL_INLINE Vector<T> gradient(const Vector<T>& g, const Vector<T>& z) const {
    const Vector<T> sigmoid = T(1) / (exponential<T>(-z) + T(1));
    return g * (sigmoid * (z * (T(1) - sigmoid) + T(1)));
  }
};

template <typename T>
struct HardSwish {  // z clamp(z + 3, 0, 6) / 6
  const Vector<T> zero = {}, three = broadcast<T>(3), six = broadcast<T>(6);
  TINYTL_INLINE Vector<T> value(const Vector<T>& z) const {
    return z * clamp<T>(z + three, zero, six) * T(1.0 / 6);
  }
  TINYTL_INLINE Vector<T> gradient(const Vector<T>& g, const Vector<T>& z) const {
    const Vector<T> inside = z * T(1.0 / 3) + T(0.5);
    return z >= three ? g : (z > -three ? g * inside : zero);
  }
};

template <typename T>
struct HardSigmoid {  // clamp(z + 3, 0, 6) / 6; of the gradient, PyTorch rounds 1 / 6 to float
  const Vector<T> zero = {}, three = broadcast<T>(3), six = broadcast<T>(6);
  TINYTL_INLINE Vector<T> value(const Vector<T>& z) const {
    return clamp<T>(z + three, zero, six) * T(1.0 / 6);
  }
  TINYTL_INLINE Vector<T> gradient(const Vector<T>& g, const Vector<T>& z) const {
    return gate<T>(g * T(1.0f / 6), z, -three, three);
  }
};

template <typename T>
struct Sigmoid {
  TINYTL_INLINE Vector<T> value(const Vector<T>& z) const { return T(1) / (exponential<T>(-z) + T(1)); }
  TINYTL_INLINE Vector<T> gradient(const Vector<T>& g, const Vector<T>& z) const {
    const Vector<T> sigmoid = value(z);
    return g * sigmoid * (T(1) - sigmoid);
  }
};

// Calls f with the activation's functions, so that a loop within f does not choose among them.
template <typename T, class F>
TINYTL_INLINE void with_activation(const Activation& act, F&& f) {
  if (act.kind == SILU) return f(Silu<T>());
  if (act.kind == HARD_SWISH) return f(HardSwish<T>());
  if (act.kind == HARD_SIGMOID) return f(HardSigmoid<T>());
  if (act.kind == SIGMOID) return f(Sigmoid<T>());
  f(Clamp<T>(act));
}

// out = activation(x * scale + shift) for `count` pixels of a vector of channels; out may be x.
template <typename T>
void activate(const Activation& act, const T* x, long count, Vector<T> scale, Vector<T> shift, T* out) {
  with_activation<T>(act, [&](const auto& activation) {
    for (long p = 0; p < count; p++)
      store(out + p * LANES<T>, activation.value(load(x + p * LANES<T>) * scale + shift));
  });
}

// Not inlined: tiles that call them would become large for what they seldom do.
template <typename T>
__attribute__((noinline)) void activate_tile(const Activation& act, Vector<T>* z, int count) {
  with_activation<T>(act, [&](const auto& activation) {
    for (int i = 0; i < count; i++) z[i] = activation.value(z[i]);
  });
}

template <typename T>
__attribute__((noinline)) void multiply_derivatives(const Activation& act, Vector<T>* g, const Vector<T>* z,
                                                    int count) {
  with_activation<T>(act, [&](const auto& activation) {
    for (int i = 0; i < count; i++) g[i] = activation.gradient(g[i], z[i]);
  });
}

// --- statistics ------------------------------------------------------------------------------------

// A norm and the activation after it; the fields are set in Python.
template <typename T>
struct Norm {
  const T *scale, *shift;       // (channels)
  T* mean;                      // (images, channels): written in the forward pass; or stored, (channels)
  T* rstd;                      // 1 / standard deviation, (images, channels); not used if stored
  const T* variance;            // stored, (channels); null where groups of the image's channels are used
  T *grad_scale, *grad_shift;   // (images, grad_step): the sums of each image are written apart
  long grad_step;
  long channels, per_group;     // per_group 0: stored statistics
  double eps;
  Activation act;

  bool stored() const { return per_group == 0; }
};

// Scale, shift, mean and 1 / standard deviation of `count` channels from `channel` on, in the lanes.
template <typename T>
struct ChannelNorm {
  Vector<T> scale, shift, mean, rstd;

  ChannelNorm() = default;
  TINYTL_INLINE ChannelNorm(const Norm<T>& norm, long image, long channel, long count)
      : scale(load_part(norm.scale + channel, count)), shift(load_part(norm.shift + channel, count)) {
    if (norm.stored()) {
      mean = load_part(norm.mean + channel, count);
      T lanes[LANES<T>] = {};
      for (long i = 0; i < count && i < LANES<T>; i++)
        lanes[i] = T(1 / std::sqrt(norm.variance[channel + i] + norm.eps));
      rstd = load(lanes);
    } else {
      mean = load_part(norm.mean + image * norm.channels + channel, count);
      rstd = load_part(norm.rstd + image * norm.channels + channel, count);
    }
  }
  // The normalisation as one product and sum: x * factor() + offset().
  TINYTL_INLINE Vector<T> factor() const { return scale * rstd; }
  TINYTL_INLINE Vector<T> offset() const { return shift - mean * factor(); }
};

// Sums of each lane about the first value that came, so that nothing cancels when a variance is made of
// them. Tiles are summed in T, and the tiles' sums in double.
template <typename T>
struct Sums {
  Vector<T> first = {};
  Wide<T> sum = {}, squares = {};

  template <int P>
  TINYTL_INLINE void add(const Vector<T>* values, long step) {
    Vector<T> part = {}, part_squares = {};
    TINYTL_UNROLL for (int p = 0; p < P; p++) {
      const Vector<T> d = values[p * step] - first;
      part += d;
      part_squares += d * d;
    }
    sum += widen<T>(part);
    squares += widen<T>(part_squares);
  }
};

// Mean and 1 / standard deviation of each group in `channels` successive lanes, summed over `area` pixels;
// written for each channel. Variances of channels are combined by Chan's formula.
template <typename T>
void write_statistics(const Sums<T>* sums, const Norm<T>& norm, long image, long channel, long channels,
                      long area) {
  constexpr long L = LANES<T>;
  T* mean = norm.mean + image * norm.channels + channel;
  T* rstd = norm.rstd + image * norm.channels + channel;
  const double per_pixel = 1.0 / area, per_value = per_pixel / norm.per_group;
  for (long start = 0; start < channels; start += norm.per_group) {
    double center = 0, squares = 0;
    for (long i = start; i < start + norm.per_group; i++)
      center += sums[i / L].first[i % L] + sums[i / L].sum[i % L] * per_pixel;
    center /= norm.per_group;
    for (long i = start; i < start + norm.per_group; i++) {
      const double own = sums[i / L].sum[i % L] * per_pixel, apart = sums[i / L].first[i % L] + own - center;
      squares += sums[i / L].squares[i % L] + area * (apart * apart - own * own);
    }
    const T group_rstd = T(1 / std::sqrt(squares * per_value + norm.eps));
    for (long i = start; i < start + norm.per_group; i++) mean[i] = T(center), rstd[i] = group_rstd;
  }
}

// --- gradients -------------------------------------------------------------------------------------

// Sums of a gradient with respect to the norm's output, and of it times the centred input (x - mean).
template <typename T>
struct GradSums {
  Wide<T> grad = {}, grad_centred = {};
};

// The gradient with respect to the norm's input: grad * factor + (x - mean) * along + constant.
template <typename T>
struct Coefficients {
  Vector<T> factor, along, constant;
};

// Writes the gradients with respect to scale and shift of `channels` successive lanes of whole groups, over
// `area` pixels, and the coefficients of every vector of them.
template <typename T>
void write_gradients(const GradSums<T>* sums, const Norm<T>& norm, long image, long channel, long channels,
                     long area, Coefficients<T>* coefficients) {
  constexpr long L = LANES<T>;
  T* grad_scale = norm.grad_scale + image * norm.grad_step + channel;
  T* grad_shift = norm.grad_shift + image * norm.grad_step + channel;
  for (long start = 0; start < channels; start += L) {
    const long used = smaller_of(L, channels - start);
    const ChannelNorm<T> own(norm, image, channel + start, used);
    store_part(grad_scale + start, narrow<T>(sums[start / L].grad_centred * widen<T>(own.rstd)), used);
    store_part(grad_shift + start, narrow<T>(sums[start / L].grad), used);
    coefficients[start / L] = {own.factor(), Vector<T>{}, Vector<T>{}};
  }
  if (norm.stored()) return;
  // With h = grad * scale, the gradient is rstd * (h - mean(h) - normed * mean(h * normed)).
  const double per_value = 1.0 / (area * norm.per_group);
  const T *scale = norm.scale + channel, *rstd = norm.rstd + image * norm.channels + channel;
  for (long start = 0; start < channels; start += norm.per_group) {
    double grad = 0, grad_centred = 0;
    for (long i = start; i < start + norm.per_group; i++) {
      grad += double(scale[i]) * sums[i / L].grad[i % L];
      grad_centred += double(scale[i]) * sums[i / L].grad_centred[i % L];
    }
    const double r = rstd[start];
    for (long i = start; i < start + norm.per_group; i++) {
      coefficients[i / L].along[i % L] = T(-grad_centred * per_value * r * r * r);
      coefficients[i / L].constant[i % L] = T(-grad * per_value * r);
    }
  }
}

// Applies the activation's derivative at z = (x - mean) * factor + shift to a tile of gradients of one
// vector of channels, and sums.
template <typename T, int P>
TINYTL_INLINE void gate_tile(const Norm<T>& norm, const ChannelNorm<T>& own, Vector<T> (&grad)[P],
                             const Vector<T> (&centred)[P], GradSums<T>& sums) {
  const Vector<T> factor = own.factor();
  if (norm.act.kind == CLAMP) {
    const Vector<T> low = broadcast(T(norm.act.low)), high = broadcast(T(norm.act.high));
    TINYTL_UNROLL for (int p = 0; p < P; p++)
      grad[p] = gate<T>(grad[p], centred[p] * factor + own.shift, low, high);
  } else {
    Vector<T> g[P], z[P];  // copies, so that the tile itself needs no address
    TINYTL_UNROLL for (int p = 0; p < P; p++) g[p] = grad[p], z[p] = centred[p] * factor + own.shift;
    multiply_derivatives<T>(norm.act, g, z, P);
    TINYTL_UNROLL for (int p = 0; p < P; p++) grad[p] = g[p];
  }
  Vector<T> total = {}, total_centred = {};
  TINYTL_UNROLL for (int p = 0; p < P; p++) total += grad[p], total_centred += grad[p] * centred[p];
  sums.grad += widen<T>(total);
  sums.grad_centred += widen<T>(total_centred);
}

// Adds the rows of the images, (images, count), in the images' order.
template <typename T>
void sum_images(const T* rows, long images, long count, T* out) {
  for (long i = 0; i < count; i++) out[i] = 0;
  for (long image = 0; image < images; image++)
    for (long i = 0; i < count; i++) out[i] += rows[image * count + i];
}

}  // namespace tinytl
