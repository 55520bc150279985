#ifndef CARAVAN_KERNELS_CPU_TILE_FORMATS_H_
#define CARAVAN_KERNELS_CPU_TILE_FORMATS_H_

// How a block of each format is unpacked from a tile (kernels/tiled/tile_layout.cc gives the
// fields' order, kernels/quant/blocks.h the formats) into codes of a byte and float scales.
//
// Included only by the files that define one instruction set's tables, each of which passes a class
// `Isa` of its own unnamed namespace: so everything here is compiled once for each set, and the
// linker cannot share it between them. What Isa offers is listed in tile_kernels.h.

#include <cstdint>

namespace caravan {

inline constexpr int kTileLine = 64;  // bytes: four values of each of 16 rows, one byte each

// Each format says: values of a block and bytes of it for all 16 rows, values of a sub-block,
// whether codes are signed (else they are unsigned, kOffset above their value), their greatest
// magnitude as stored, and whether there are minima.
//
// Line<Isa, kPart>(block, i) gives columns 32 kPart + 4 i .. + 3 of the block as bytes, i < 8.
// Scales<Isa>(block, scales, mins) gives the block's, [sub-block][row].

/// One scale for the whole block, before the codes.
struct TiledOneScale {
  template <class Isa>
  static void Scales(const uint8_t* block, float (*scales)[16], float (*)[16]) {
    Isa::StoreFloats(scales[0], Isa::LoadHalves(block));
  }
};

struct TiledQ8_0 : TiledOneScale {
  static constexpr int kValues = 32, kSubValues = 32, kTileBytes = 16 * 34;
  static constexpr bool kHasMins = false, kSigned = true;
  static constexpr int kMaxCode = 128, kOffset = 0;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    return Isa::LoadBytes(block + 32 + i * kTileLine);
  }
};

struct TiledQ4_0 : TiledOneScale {
  static constexpr int kValues = 32, kSubValues = 32, kTileBytes = 16 * 18;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 15, kOffset = 8;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    const typename Isa::Bytes line = Isa::LoadBytes(block + 32 + i % 4 * kTileLine);
    return i < 4 ? Isa::template Move<0, 0, 4>(line) : Isa::template Move<4, 0, 4>(line);
  }
};

/// The scales and minima of Q4_K and Q5_K: d, dmin, then the 12 bytes of 16 rows each.
struct TiledSixBitScales {
  template <class Isa>
  static void Scales(const uint8_t* fields, float (*scales)[16], float (*mins)[16]) {
    const typename Isa::Bytes first = Isa::LoadBytes(fields + 64);
    const typename Isa::Bytes second = Isa::LoadBytes(fields + 128);
    const typename Isa::Bytes third = Isa::LoadBytes(fields + 192);
    alignas(64) uint8_t integers[4][kTileLine];  // scales 0-3, 4-7, minima 0-3, 4-7 of 16 rows
    Isa::StoreBytes(integers[0], Isa::template Move<0, 0, 6>(first));
    Isa::StoreBytes(integers[1], Isa::Or(Isa::template Move<0, 0, 4>(third),
                                         Isa::template Move<6, 4, 2>(first)));
    Isa::StoreBytes(integers[2], Isa::template Move<0, 0, 6>(second));
    Isa::StoreBytes(integers[3], Isa::Or(Isa::template Move<4, 0, 4>(third),
                                         Isa::template Move<6, 4, 2>(second)));
    const typename Isa::Floats d = Isa::LoadHalves(fields);
    const typename Isa::Floats dmin = Isa::LoadHalves(fields + 32);
    for (int s = 0; s < 8; ++s) {
      const uint8_t* scale = integers[s / 4] + s % 4 * 16;
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadUnsigned(scale)));
      Isa::StoreFloats(mins[s], Isa::Mul(dmin, Isa::LoadUnsigned(scale + 2 * kTileLine)));
    }
  }
};

struct TiledQ4_K : TiledSixBitScales {
  static constexpr int kValues = 256, kSubValues = 32, kTileBytes = 16 * 144;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 15, kOffset = 0;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    const uint8_t* low = block + 16 * 16 + kPart / 2 * 8 * kTileLine;
    return Isa::template Move<kPart % 2 * 4, 0, 4>(Isa::LoadBytes(low + i * kTileLine));
  }
};

struct TiledQ5_K : TiledSixBitScales {
  static constexpr int kValues = 256, kSubValues = 32, kTileBytes = 16 * 176;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 31, kOffset = 0;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    const uint8_t* high = block + 16 * 16;
    const uint8_t* low = block + 48 * 16 + kPart / 2 * 8 * kTileLine;
    return Isa::Or(Isa::template Move<kPart % 2 * 4, 0, 4>(Isa::LoadBytes(low + i * kTileLine)),
                   Isa::template Move<kPart, 4, 1>(Isa::LoadBytes(high + i * kTileLine)));
  }
};

struct TiledQ6_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 210;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 63, kOffset = 32;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    constexpr int kQuarter = kPart % 4;  // of 128 values
    const uint8_t* high = block + 18 * 16 + kPart / 4 * 8 * kTileLine;
    const uint8_t* low = block + 82 * 16 + (kPart / 4 * 16 + kQuarter % 2 * 8) * kTileLine;
    return Isa::Or(Isa::template Move<kQuarter / 2 * 4, 0, 4>(Isa::LoadBytes(low + i * kTileLine)),
                   Isa::template Move<2 * kQuarter, 4, 2>(Isa::LoadBytes(high + i * kTileLine)));
  }

  template <class Isa>
  static void Scales(const uint8_t* block, float (*scales)[16], float (*)[16]) {
    const typename Isa::Floats d = Isa::LoadHalves(block);
    for (int s = 0; s < 16; ++s) {
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadSigned(block + 32 + 16 * s)));
    }
  }
};

struct TiledQ3_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 110;
  static constexpr bool kHasMins = false, kSigned = false;
  static constexpr int kMaxCode = 7, kOffset = 4;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    const uint8_t* third = block + 14 * 16;
    const uint8_t* low = block + 46 * 16 + kPart / 4 * 8 * kTileLine;
    return Isa::Or(Isa::template Move<kPart % 4 * 2, 0, 2>(Isa::LoadBytes(low + i * kTileLine)),
                   Isa::template Move<kPart, 2, 1>(Isa::LoadBytes(third + i * kTileLine)));
  }

  template <class Isa>
  static void Scales(const uint8_t* block, float (*scales)[16], float (*)[16]) {
    const typename Isa::Bytes low0 = Isa::LoadBytes(block + 32);
    const typename Isa::Bytes low1 = Isa::LoadBytes(block + 32 + kTileLine);
    const typename Isa::Bytes high = Isa::LoadBytes(block + 32 + 2 * kTileLine);
    alignas(64) uint8_t integers[4][kTileLine];  // scales + 32: four sub-blocks of 16 rows a line
    Isa::StoreBytes(integers[0],
                    Isa::Or(Isa::template Move<0, 0, 4>(low0), Isa::template Move<0, 4, 2>(high)));
    Isa::StoreBytes(integers[1],
                    Isa::Or(Isa::template Move<0, 0, 4>(low1), Isa::template Move<2, 4, 2>(high)));
    Isa::StoreBytes(integers[2],
                    Isa::Or(Isa::template Move<4, 0, 4>(low0), Isa::template Move<4, 4, 2>(high)));
    Isa::StoreBytes(integers[3],
                    Isa::Or(Isa::template Move<4, 0, 4>(low1), Isa::template Move<6, 4, 2>(high)));
    const typename Isa::Floats d = Isa::LoadHalves(block);
    const typename Isa::Floats offset = Isa::Broadcast(-32);
    for (int s = 0; s < 16; ++s) {
      const uint8_t* scale = integers[s / 4] + s % 4 * 16;
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::Add(Isa::LoadUnsigned(scale), offset)));
    }
  }
};

struct TiledQ2_K {
  static constexpr int kValues = 256, kSubValues = 16, kTileBytes = 16 * 84;
  static constexpr bool kHasMins = true, kSigned = false;
  static constexpr int kMaxCode = 3, kOffset = 0;

  template <class Isa, int kPart>
  static typename Isa::Bytes Line(const uint8_t* block, int i) {
    const uint8_t* lines = block + 20 * 16 + kPart / 4 * 8 * kTileLine;
    return Isa::template Move<kPart % 4 * 2, 0, 2>(Isa::LoadBytes(lines + i * kTileLine));
  }

  template <class Isa>
  static void Scales(const uint8_t* block, float (*scales)[16], float (*mins)[16]) {
    alignas(64) uint8_t integers[2][4][kTileLine];  // scales, then minima
    for (int i = 0; i < 4; ++i) {
      const typename Isa::Bytes both = Isa::LoadBytes(block + 64 + i * kTileLine);
      Isa::StoreBytes(integers[0][i], Isa::template Move<0, 0, 4>(both));
      Isa::StoreBytes(integers[1][i], Isa::template Move<4, 0, 4>(both));
    }
    const typename Isa::Floats d = Isa::LoadHalves(block);
    const typename Isa::Floats dmin = Isa::LoadHalves(block + 32);
    for (int s = 0; s < 16; ++s) {
      Isa::StoreFloats(scales[s], Isa::Mul(d, Isa::LoadUnsigned(integers[0][s / 4] + s % 4 * 16)));
      Isa::StoreFloats(mins[s], Isa::Mul(dmin, Isa::LoadUnsigned(integers[1][s / 4] + s % 4 * 16)));
    }
  }
};

// Formats of single values: bytes of a value, and the values of one column, times a scale where
// the format has one beside it.

struct TiledF32 {
  static constexpr int kBytes = 4;
  template <class Isa>
  static typename Isa::Floats Load(const uint8_t* column, typename Isa::Floats) {
    return Isa::LoadFloats(reinterpret_cast<const float*>(column));
  }
};

struct TiledF16 {
  static constexpr int kBytes = 2;
  template <class Isa>
  static typename Isa::Floats Load(const uint8_t* column, typename Isa::Floats) {
    return Isa::LoadHalves(column);
  }
};

struct TiledBF16 {
  static constexpr int kBytes = 2;
  template <class Isa>
  static typename Isa::Floats Load(const uint8_t* column, typename Isa::Floats) {
    return Isa::LoadBFloats(column);
  }
};

struct TiledF8E4M3 {
  static constexpr int kBytes = 1;
  template <class Isa>
  static typename Isa::Floats Load(const uint8_t* column, typename Isa::Floats scale) {
    return Isa::Mul(Isa::LoadF8E4M3(column), scale);
  }
};

}  // namespace caravan

#endif  // CARAVAN_KERNELS_CPU_TILE_FORMATS_H_
