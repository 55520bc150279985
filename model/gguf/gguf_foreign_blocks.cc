#include "model/gguf/gguf_foreign_blocks.h"

#include <cstring>

#include "kernels/quant/blocks.h"

namespace caravan {
namespace {

constexpr int kValues = kForeignBlockValues;

/// The numbers that the codes of IQ4_NL stand for (ggml, kvalues_iq4nl).
constexpr int8_t kIq4NlValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

struct Nibbles {
  uint8_t bytes[kValues / 2];

  int Get(int i) const { return BitsAt(bytes[i % 16], i / 16 * 4, 4); }
};

struct Fifths {
  uint8_t bytes[kValues / 8];

  int Get(int i) const { return BitsAt(bytes[i / 8], i % 8, 1) << 4; }
};

struct Q4_1Block {
  Half d, m;
  Nibbles codes;

  int Code(int i) const { return codes.Get(i); }
};

struct Q5_0Block {
  Half d;
  Fifths fifths;
  Nibbles codes;

  int Code(int i) const { return (codes.Get(i) | fifths.Get(i)) - 16; }
};

struct Q5_1Block {
  Half d, m;
  Fifths fifths;
  Nibbles codes;

  int Code(int i) const { return codes.Get(i) | fifths.Get(i); }
};

struct Iq4NlBlock {
  Half d;
  Nibbles codes;

  int Code(int i) const { return kIq4NlValues[codes.Get(i)]; }
};

template <typename Block>
void ToQ8_0(const std::byte* block, std::byte* out) {
  Block from;
  std::memcpy(&from, block, sizeof(from));
  Q8_0Block to;
  to.d = from.d;
  for (int i = 0; i < kValues; ++i) to.SetCode(i, from.Code(i));
  std::memcpy(out, &to, sizeof(to));
}

template <typename Block>
void ToFloats(const std::byte* block, std::byte* out) {
  Block from;
  std::memcpy(&from, block, sizeof(from));
  float values[kValues];
  for (int i = 0; i < kValues; ++i) {
    // The product has 16 significant bits, so nothing is rounded but the sum.
    values[i] = from.d.Get() * static_cast<float>(from.Code(i)) + from.m.Get();
  }
  std::memcpy(out, values, sizeof(values));
}

template <typename Block>
constexpr GgufForeignBlocks AsQ8_0() {
  return {sizeof(Block), DType::kQ8_0, ToQ8_0<Block>};
}

template <typename Block>
constexpr GgufForeignBlocks AsFloats() {
  return {sizeof(Block), DType::kF32, ToFloats<Block>};
}

}  // namespace

constexpr GgufForeignBlocks kGgufQ4_1 = AsFloats<Q4_1Block>();
constexpr GgufForeignBlocks kGgufQ5_0 = AsQ8_0<Q5_0Block>();
constexpr GgufForeignBlocks kGgufQ5_1 = AsFloats<Q5_1Block>();
constexpr GgufForeignBlocks kGgufIq4Nl = AsQ8_0<Iq4NlBlock>();

}  // namespace caravan
