// Squeeze and excitation of one image: gates for the channels, made of the means of their maps.
#pragma once

#include "pointwise.h"
#include "trained_weight.h"

namespace tinytl {

// gates = gate(expand act(reduce means + reduce_bias) + expand_bias). The fields are set in Python.
template <typename T>
struct SqueezeExcitation {
  // Weights without shifts: their layers have biases, and are not standardised.
  Weight<T> reduce;                         // (lanes, hidden rounded up to PACK)
  Weight<T> expand;                         // (lanes / PACK, hidden, PACK)
  const T *reduce_bias, *expand_bias;       // (hidden), (channels)
  T* means;                                 // (images, lanes): written in the forward pass
  T *grad_reduce_bias, *grad_expand_bias;   // rows of each image, as those of the norms
  Activation act, gate;
  long hidden;                              // 0: there is no squeeze and excitation
};

// The sum of the lanes.
template <typename T>
TINYTL_INLINE T sum_lanes(const Vector<T>& v) {
  T sum = 0;
  for (long i = 0; i < LANES<T>; i++) sum += v[i];
  return sum;
}

// The mean of each lane over `area` pixels. Some pixels are summed in T, their sums in double.
template <typename T>
Vector<T> mean_of_pixels(const T* maps, long area) {
  constexpr long L = LANES<T>, STREAMS = 4, SPAN = 16 * STREAMS;
  Wide<T> total = {};
  for (long start = 0; start < area; start += SPAN) {
    const long stop = smaller_of(start + SPAN, area);
    Vector<T> parts[STREAMS] = {};
    long p = start;
    for (; p + STREAMS <= stop; p += STREAMS)
      TINYTL_UNROLL for (long i = 0; i < STREAMS; i++) parts[i] += load(maps + (p + i) * L);
    for (; p < stop; p++) parts[0] += load(maps + p * L);
    total += widen<T>((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
  return narrow<T>(total * (1.0 / double(area)));
}

// The gates of one image and their gradients.
template <typename T>
class Gates {
 public:
  // `buffer` holds three vectors of lanes and three of hidden channels, rounded up to PACK.
  Gates(const SqueezeExcitation<T>& parts, const Packing& packing, long image, T* buffer)
      : parts(parts), packing(packing), lanes(packing.lanes()), padded(ceil_div(parts.hidden, PACK) * PACK),
        means(parts.means + image * lanes), values(buffer), before(values + lanes), grads(before + lanes),
        hidden_before(grads + lanes), hidden(hidden_before + padded), grad_hidden(hidden + padded) {}

  bool exist() const { return parts.hidden > 0; }
  // Those of the lane, and the gradient with respect to the mean over its maps' pixels, divided by their number.
  T value(long lane) const { return values[lane]; }
  Vector<T> vector(long lane) const { return load(values + lane); }
  Vector<T> grad_pixel(long lane) const { return load(grads + lane); }
  // The gradient with respect to the gates of a vector, before `backward`.
  void set_grad(long lane, const Vector<T>& grad) { store(grads + lane, grad); }
  // Means of padding are zeros: its weights need not be.
  void set_mean(long lane, const Vector<T>& mean) {
    const long used = packing.used(lane, L);
    store(means + lane, Vector<T>{});
    store_part(means + lane, mean, used);
  }

  void compute() {
    reduce();
    expand();
  }

  // From the gradient with respect to the gates to that with respect to each of the `area` pixels of the maps, by
  // way of their means. Writes those with respect to the biases to the image's rows. Calls add_weights() when
  // `add_weight_gradients` may be called.
  template <class F>
  void backward(long image, long grad_step, long area, F&& add_weights) {
    backward_gate(parts.grad_expand_bias + image * grad_step);
    backward_expand();
    backward_act(parts.grad_reduce_bias + image * grad_step);
    add_weights();
    backward_reduce(T(1) / T(area));
  }

  // Adds the image's gradients with respect to the weights that train. `natural` takes a row of either.
  void add_weight_gradients(const Convolution<T>& reduce, const Convolution<T>& expand, T* natural) const {
    for (long k = 0; reduce.grad_weight && k < parts.hidden; k++) {
      for (long lane = 0; lane < lanes; lane += L)
        store_part(natural + packing.channel(lane), load(means + lane) * grad_hidden[k], packing.used(lane, L));
      add_row_gradient(reduce, k, natural);
    }
    for (long lane = 0; expand.grad_weight && lane < lanes; lane += L)
      for (long i = 0; i < packing.used(lane, L); i++) {
        for (long k = 0; k < padded; k += L) store(natural + k, load(hidden + k) * grads[lane + i]);
        add_row_gradient(expand, packing.channel(lane) + i, natural);
      }
  }

 private:
  static constexpr long L = LANES<T>;
  const SqueezeExcitation<T>& parts;
  const Packing& packing;
  const long lanes, padded;  // padded: hidden channels, rounded up
  T *means, *values, *before, *grads, *hidden_before, *hidden, *grad_hidden;

  static Vector<T> one() { return broadcast(T(1)); }

  void reduce() {
    for (long k = 0; k < padded; k += L) {
      Vector<T> sum = {};
      for (long lane = 0; lane < lanes; lane++) sum += parts.reduce.load_at(lane * padded + k) * means[lane];
      const long used = smaller_of(L, parts.hidden > k ? parts.hidden - k : 0);
      store(hidden_before + k, sum * load(parts.reduce.scale + k) + load_part(parts.reduce_bias + k, used));
    }
    activate<T>(parts.act, hidden_before, padded / L, one(), Vector<T>{}, hidden);
  }

  void expand() {
    for (long lane = 0; lane < lanes; lane += L) {
      Vector<T> sum = {};
      for (long k = 0; k < parts.hidden; k++)
        sum += parts.expand.load_at(packed_at(lane, k, parts.hidden)) * hidden[k];
      store(before + lane, sum * load(parts.expand.scale + lane) +
                               load_part(parts.expand_bias + packing.channel(lane), packing.used(lane, L)));
    }
    activate<T>(parts.gate, before, lanes / L, one(), Vector<T>{}, values);
  }

  void backward_gate(T* grad_bias) {
    for (long lane = 0; lane < lanes; lane += L) {
      Vector<T> grad = load(grads + lane);
      const Vector<T> at = load(before + lane);
      multiply_derivatives<T>(parts.gate, &grad, &at, 1);
      store(grads + lane, grad);
      store_part(grad_bias + packing.channel(lane), grad, packing.used(lane, L));
    }
  }

  void backward_expand() {
    for (long k = 0; k < padded; k++) {
      Vector<T> sum = {};
      for (long lane = 0; k < parts.hidden && lane < lanes; lane += L)
        sum += parts.expand.load_at(packed_at(lane, k, parts.hidden)) *
               (load(grads + lane) * load(parts.expand.scale + lane));
      grad_hidden[k] = k < parts.hidden ? sum_lanes<T>(sum) : 0;
    }
  }

  void backward_act(T* grad_bias) {
    for (long k = 0; k < padded; k += L) {
      Vector<T> grad = load(grad_hidden + k);
      const Vector<T> at = load(hidden_before + k);
      multiply_derivatives<T>(parts.act, &grad, &at, 1);
      store(grad_hidden + k, grad);
      if (k < parts.hidden) store_part(grad_bias + k, grad, parts.hidden - k);
    }
  }

  void backward_reduce(T per_pixel) {
    for (long k = 0; k < padded; k += L)
      store(grad_hidden + k, load(grad_hidden + k) * load(parts.reduce.scale + k));
    for (long lane = 0; lane < lanes; lane++) {
      Vector<T> sum = {};
      for (long k = 0; k < padded; k += L)
        sum += parts.reduce.load_at(lane * padded + k) * load(grad_hidden + k);
      grads[lane] = sum_lanes<T>(sum) * per_pixel;
    }
  }
};

}  // namespace tinytl
