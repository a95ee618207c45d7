// The weight of a convolution that trains, in the order in which the native blocks read weights: packed for a
// call, and standardised by a scale and a shift of each output channel.
#include "trained_weight.h"

namespace tinytl {
namespace {

// The fields are set in Python, see trained_weight.py.
template <typename T>
struct PackedCopy {
  Convolution<T> conv;
  Packing packing;  // of the output channels; or of the input channels, where `columns` is 1
  long columns;
  T *values, *scale, *shift;
};

// (lanes / PACK, elements of a channel, PACK)
template <typename T>
void pack_output_channels(const PackedCopy<T>& copy) {
  const long size = copy.conv.row_size();
  for (long lane = 0; lane < copy.packing.lanes(); lane += PACK) {
    const long channel = copy.packing.channel(lane), used = copy.packing.used(lane, PACK);
    pack_rows(copy.conv.row(channel), size, used, size, PACK, copy.values + lane * size);
    for (long i = 0; i < PACK; i++) {
      const RowScale<T> own = i < used ? RowScale<T>(copy.conv, channel + i) : RowScale<T>();
      copy.scale[lane + i] = i < used ? own.factor : T(0);
      copy.shift[lane + i] = -own.mean * own.factor;
    }
  }
}

// (lanes, out_lanes)
template <typename T>
void pack_input_channels(const PackedCopy<T>& copy) {
  const long out = copy.conv.out, out_lanes = ceil_div(out, PACK) * PACK;
  for (long lane = 0; lane < copy.packing.lanes(); lane += PACK) {
    const long channel = copy.packing.channel(lane), used = copy.packing.used(lane, PACK);
    T* values = copy.values + lane * out_lanes;
    pack_rows(copy.conv.row(0) + channel, copy.conv.row_size(), out, used, out_lanes, values);
    std::memset(values + used * out_lanes, 0, sizeof(T) * (PACK - used) * out_lanes);
  }
  for (long o = 0; o < out_lanes; o++) {
    const RowScale<T> own = o < out ? RowScale<T>(copy.conv, o) : RowScale<T>();
    copy.scale[o] = o < out ? own.factor : T(0);
    copy.shift[o] = -own.mean * own.factor;
  }
}

template <typename T>
void pack_trained_weight(const PackedCopy<T>& copy) {
  write_row_statistics(copy.conv);
  if (copy.columns)
    pack_input_channels(copy);
  else
    pack_output_channels(copy);
}

}  // namespace
}  // namespace tinytl

#define TINYTL_TRAINED_PACKING(T, suffix)                                                     \
  void pack_trained_weight_##suffix(const tinytl::PackedCopy<T>* copy, const T* /* weight */) { \
    tinytl::pack_trained_weight(*copy);                                                       \
  }

extern "C" {
#if defined(TINYTL_FLOAT32)
TINYTL_TRAINED_PACKING(float, float32)
#else
TINYTL_TRAINED_PACKING(double, float64)
#endif
}
