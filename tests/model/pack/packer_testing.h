#ifndef CARAVAN_TESTS_MODEL_PACK_PACKER_TESTING_H_
#define CARAVAN_TESTS_MODEL_PACK_PACKER_TESTING_H_

// What the tests of the packer share: tiny-r1 and a place to pack it to.

#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "gtest/gtest.h"
#include "kernels/tiled/tile_layout.h"
#include "model/checkpoint.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "tests/support/temp_dir.h"

namespace caravan {

inline constexpr char kTiny[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";

inline std::vector<std::byte> ReadAll(const TensorSource& source, const std::string& name) {
  std::vector<std::byte> bytes(static_cast<size_t>(source.Find(name)->num_bytes()));
  EXPECT_TRUE(source.Read(name, absl::MakeSpan(bytes)).ok()) << name;
  return bytes;
}

/// The packed tensor's rows, out of their tiles.
inline std::vector<std::byte> RowMajor(const TensorSource& source, const std::string& name) {
  const TensorInfo& info = *source.Find(name);
  std::vector<std::byte> bytes = ReadAll(source, name);
  if (info.layout == MatrixLayout::kRowMajor) return bytes;
  std::vector<std::byte> rows(static_cast<size_t>(DTypeBytes(info.dtype, info.num_elements())));
  UntileMatrix(info.dtype, info.shape[0], info.shape[1], bytes.data(), rows.data());
  return rows;
}

class PackerTest : public ::testing::Test {
 protected:
  PackerTest() : source_(*Checkpoint::Open(kTiny)) {}

  PackOptions Options(const std::string& name, const PackTypes& types) const {
    PackOptions options;
    options.output = dir_.File(name);
    options.types = types;
    options.num_threads = 2;
    return options;
  }
  std::unique_ptr<PackedModel> MustPack(const PackOptions& options) const {
    const absl::Status packed = Pack(*source_, options);
    EXPECT_TRUE(packed.ok()) << packed;
    auto model = PackedModel::Open(options.output);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  const TempDir dir_;
  const std::unique_ptr<Checkpoint> source_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_PACK_PACKER_TESTING_H_
