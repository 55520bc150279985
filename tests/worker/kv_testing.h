#ifndef CARAVAN_TESTS_WORKER_KV_TESTING_H_
#define CARAVAN_TESTS_WORKER_KV_TESTING_H_

// Small KV blocks, whose bytes say whose they are.

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/kv_block_store.h"

namespace caravan {

/// Layers of 96 bytes.
inline constexpr KvFormat kSmallKv = {DType::kF32, 3, 8};
inline constexpr int64_t kSmallLayerBytes = 96;

inline KvBlockName KvName(int i) { return NameKvRoot(std::to_string(i)); }

/// What layer `layer` of the model holds of block `i`.
inline std::byte KvValue(int i, int layer) { return static_cast<std::byte>(16 * i + layer); }

inline std::vector<std::byte> KvLayers(int i, const LayerRange& layers) {
  std::vector<std::byte> bytes;
  for (int layer = layers.first; layer < layers.end(); ++layer) {
    bytes.insert(bytes.end(), static_cast<size_t>(kSmallLayerBytes), KvValue(i, layer));
  }
  return bytes;
}

inline std::unique_ptr<KvBlockStore> MustOpenKvStore(const std::string& directory,
                                                     int64_t budget_bytes = 1 << 20) {
  auto store = KvBlockStore::Open(directory, budget_bytes);
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

inline absl::Status WriteKv(KvBlockStore& store, int i, const LayerRange& layers,
                            const KvFormat& format = kSmallKv) {
  return store.Write(format, {KvName(i), layers}, KvLayers(i, layers));
}

/// Whether the store has these layers, as they should be.
inline absl::Status ReadKv(KvBlockStore& store, int i, const LayerRange& layers) {
  std::vector<std::byte> read;
  absl::Status status =
      store.Read(kSmallKv, {KvName(i), layers}, [&](int layer, absl::Span<const std::byte> bytes) {
        EXPECT_EQ(std::ssize(read), layer * kSmallLayerBytes);
        read.insert(read.end(), bytes.begin(), bytes.end());
        return absl::OkStatus();
      });
  if (status.ok()) {
    EXPECT_EQ(read, KvLayers(i, layers));
  }
  return status;
}

/// But for the store's lock.
inline std::vector<std::filesystem::path> FilesIn(const std::string& directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& each : std::filesystem::recursive_directory_iterator(directory)) {
    if (each.is_regular_file() && each.path().filename() != "kv.lock") files.push_back(each.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_WORKER_KV_TESTING_H_
