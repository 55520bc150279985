// A KV cache with blocks on disk against a plain array of what each of them holds.

#include "worker/kv_disk.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"
#include "worker/kv_cache.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr int kLayers = 5;
constexpr int64_t kWidth = 70;  // rows that no page is a multiple of
constexpr int64_t kBlockTokens = 64;
constexpr int64_t kRowBytes = kWidth * 4;
constexpr KvBlockShape kShape = {kLayers, kBlockTokens* kRowBytes};

/// A disk that fails the reads that it is told to, and holds one up.
class FailingQueue : public ReadQueue {
 public:
  FailingQueue() : queue_(*ReadQueue::Create({})) {}

  /// Begins the read that was held.
  void Release() {
    const Held held = std::move(*held_);
    held_.reset();
    queue_->Submit(held.read, held.priority, held.done);
  }

  absl::string_view Name() const override { return queue_->Name(); }
  Id Submit(const FileRead& read, ReadPriority priority, Done done) override {
    if (held_read >= 0 && held_read-- == 0) {
      held_ = Held{read, priority, std::move(done)};
      return 0;
    }
    if (good_reads-- > 0) return queue_->Submit(read, priority, std::move(done));
    done(absl::DataLossError("the disk failed"));
    return 0;
  }
  void Promote(Id id) override { queue_->Promote(id); }
  bool Cancel(Id id) override { return queue_->Cancel(id); }
  Counters counters() const override { return queue_->counters(); }

  int64_t good_reads = INT64_MAX;
  int held_read = -1;  // so many reads from now; -1: none

 private:
  struct Held {
    FileRead read;
    ReadPriority priority;
    Done done;
  };
  std::optional<Held> held_;
  const std::unique_ptr<ReadQueue> queue_;
};

class KvDiskTest : public ::testing::Test {
 protected:
  /// So many blocks in memory, and so many on disk.
  std::unique_ptr<KvCache> Create(int64_t in_memory, int64_t on_disk) {
    KvCache::Options options;
    options.num_layers = kLayers;
    options.width = kWidth;
    options.block_tokens = kBlockTokens;
    options.budget_bytes =
        in_memory * kShape.block_bytes() + on_disk * kShape.memory_of_disk_block();
    options.disk_bytes = on_disk * kShape.disk_block_bytes();
    options.disk_directory = dir_.path();
    options.disk_reads = &queue_;
    std::unique_ptr<KvCache> cache = *KvCache::Create(options);
    EXPECT_EQ(cache->num_blocks(), in_memory + on_disk);
    EXPECT_EQ(cache->blocks_on_disk(), on_disk);
    return cache;
  }

  TempDir dir_;
  FailingQueue queue_;
};

float* Row(const KvCache& cache, int64_t block, int layer, int64_t row) {
  return reinterpret_cast<float*>(cache.LayerOfBlock(block, layer)) + row * kWidth;
}

/// A sequence: its blocks, and what its rows hold, which differs by layer.
struct Sequence {
  std::vector<int64_t> blocks;
  std::vector<float> values;  // by row

  int64_t rows() const { return static_cast<int64_t>(values.size()); }
};

/// What a step that adds `new_rows` to the sequence does with its blocks.
void AppendUses(const Sequence& sequence, int64_t new_rows, std::vector<KvBlockUse>& uses) {
  for (size_t i = 0; i < sequence.blocks.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * kBlockTokens;
    const int64_t end = std::min(sequence.rows() + new_rows - begin, kBlockTokens);
    if (end <= 0) break;
    uses.push_back(
        {sequence.blocks[i], std::clamp<int64_t>(sequence.rows() - begin, 0, kBlockTokens), end});
  }
}

TEST_F(KvDiskTest, KeepsWhatStepsWriteToBlocksInMemoryAndOnDisk) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937_64 rng(seed);
    const auto random = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(rng);
    };
    const auto cache = Create(3, 9);
    std::vector<int64_t> free(12);
    for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int64_t>(i);
    std::shuffle(free.begin(), free.end(), rng);
    std::vector<Sequence> sequences(3);
    for (int step = 0; step < 40; ++step) {
      std::vector<std::pair<Sequence*, int64_t>> slices;  // and their new rows
      std::vector<KvBlockUse> uses;
      for (Sequence& sequence : sequences) {
        if (random(0, 2) == 0) continue;
        const int64_t new_rows = random(0, 3) == 0 ? random(1, 100) : 1;
        const auto needed =
            static_cast<size_t>((sequence.rows() + new_rows + kBlockTokens - 1) / kBlockTokens);
        if (needed > sequence.blocks.size() + free.size()) {
          // It ends, and another begins in its place.
          free.insert(free.end(), sequence.blocks.begin(), sequence.blocks.end());
          sequence = {};
          continue;
        }
        while (sequence.blocks.size() < needed) {
          sequence.blocks.push_back(free.back());
          free.pop_back();
        }
        AppendUses(sequence, new_rows, uses);
        slices.emplace_back(&sequence, new_rows);
      }
      cache->BeginStep(uses);
      const float first_value = static_cast<float>(random(1, 1000000));
      for (int layer = 0; layer < kLayers; ++layer) {
        ASSERT_TRUE(cache->LoadLayer(layer, layer + 1 < kLayers ? layer + 1 : -1).ok());
        for (const auto& [sequence, new_rows] : slices) {
          for (int64_t row = 0; row < sequence->rows() + new_rows; ++row) {
            float* const values =
                Row(*cache, sequence->blocks[row / kBlockTokens], layer, row % kBlockTokens);
            if (row >= sequence->rows()) {
              std::fill_n(values, kWidth, first_value + static_cast<float>(row + layer));
              continue;
            }
            const float expected =
                sequence->values[static_cast<size_t>(row)] + static_cast<float>(layer);
            for (int64_t i : {int64_t{0}, kWidth / 2, kWidth - 1}) {
              ASSERT_EQ(values[i], expected)
                  << "step " << step << " layer " << layer << " row " << row << " value " << i;
            }
          }
        }
        ASSERT_TRUE(cache->StoreLayer(layer).ok());
      }
      for (const auto& [sequence, new_rows] : slices) {
        for (int64_t row = sequence->rows(), end = row + new_rows; row < end; ++row) {
          sequence->values.push_back(first_value + static_cast<float>(row));
        }
      }
    }
  }
}

/// Writes `value` + layer to all rows of a block.
void FillBlock(KvCache& cache, int64_t block, float value) {
  const KvBlockUse use = {block, 0, kBlockTokens};
  cache.BeginStep(absl::MakeConstSpan(&use, 1));
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(cache.LoadLayer(layer, -1).ok());
    std::fill_n(Row(cache, block, layer, 0), kBlockTokens * kWidth,
                value + static_cast<float>(layer));
    ASSERT_TRUE(cache.StoreLayer(layer).ok());
  }
}

void ExpectBlock(KvCache& cache, int64_t block, float value) {
  const KvBlockUse use = {block, kBlockTokens, kBlockTokens};
  // Twice, as two sequences that share it.
  cache.BeginStep({use, use});
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(cache.LoadLayer(layer, layer + 1 < kLayers ? layer + 1 : -1).ok());
    const float* const begin = Row(cache, block, layer, 0);
    EXPECT_EQ(std::count(begin, begin + kBlockTokens * kWidth, value + static_cast<float>(layer)),
              kBlockTokens * kWidth)
        << "block " << block << " layer " << layer;
    ASSERT_TRUE(cache.StoreLayer(layer).ok());
  }
}

TEST_F(KvDiskTest, CopiesBetweenMemoryAndDisk) {
  const auto cache = Create(2, 4);
  for (const int64_t from : {0, 3}) {
    for (const int64_t to : {1, 5}) {
      const float value = static_cast<float>(100 * from + 10 * to);
      FillBlock(*cache, from, value);
      FillBlock(*cache, 4, 7777);
      ASSERT_TRUE(cache->CopyBlock(from, to).ok());
      ExpectBlock(*cache, to, value);
      ExpectBlock(*cache, from, value);
      ExpectBlock(*cache, 4, 7777);
    }
  }
}

TEST_F(KvDiskTest, AStepThatFailsLeavesWhatItStored) {
  const auto cache = Create(0, 6);
  FillBlock(*cache, 2, 10);
  FillBlock(*cache, 3, 20);
  const std::vector<KvBlockUse> uses = {{2, 10, 12}, {3, kBlockTokens, kBlockTokens}};
  queue_.good_reads = 3;  // two of layer 0, one of layer 1
  cache->BeginStep(uses);
  ASSERT_TRUE(cache->LoadLayer(0, 1).ok());
  std::fill_n(Row(*cache, 2, 0, 10), 2 * kWidth, 77.0f);
  ASSERT_TRUE(cache->StoreLayer(0).ok());
  const absl::Status failed = cache->LoadLayer(1, 2);
  EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(failed.message()), HasSubstr("the KV cache on disk: the disk failed"));
  queue_.good_reads = INT64_MAX;
  ExpectBlock(*cache, 3, 20);
  const KvBlockUse use = {2, kBlockTokens, kBlockTokens};
  cache->BeginStep(absl::MakeConstSpan(&use, 1));
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(cache->LoadLayer(layer, -1).ok());
    for (int64_t row = 0; row < kBlockTokens; ++row) {
      const bool stored = layer == 0 && (row == 10 || row == 11);
      EXPECT_EQ(*Row(*cache, 2, layer, row), stored ? 77.0f : 10.0f + static_cast<float>(layer))
          << "layer " << layer << " row " << row;
    }
  }
}

TEST_F(KvDiskTest, ACopyWaitsForWhatAFailedStepStillReads) {
  const auto cache = Create(1, 3);
  FillBlock(*cache, 0, 10);
  FillBlock(*cache, 2, 20);
  const KvBlockUse use = {2, kBlockTokens, kBlockTokens};
  cache->BeginStep(absl::MakeConstSpan(&use, 1));
  ASSERT_TRUE(cache->LoadLayer(0, 1).ok());
  queue_.held_read = 0;  // of layer 2, begun ahead; the step goes no further
  ASSERT_TRUE(cache->LoadLayer(1, 2).ok());
  std::thread release([this] { queue_.Release(); });
  ASSERT_TRUE(cache->CopyBlock(0, 2).ok());
  release.join();
  ExpectBlock(*cache, 2, 10);
}

TEST_F(KvDiskTest, WithoutItsDiskACacheIsInMemoryAlone) {
  KvCache::Options options;
  options.num_layers = kLayers;
  options.width = kWidth;
  options.block_tokens = kBlockTokens;
  options.budget_bytes = 4 * kShape.block_bytes();
  options.disk_bytes = 6 * kShape.disk_block_bytes();
  options.disk_directory = dir_.File("none");
  const auto cache = KvCache::Create(options);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ((*cache)->num_blocks(), 4);
  EXPECT_EQ((*cache)->blocks_on_disk(), 0);
}

TEST_F(KvDiskTest, NeighboursAreReadAtOnce) {
  const auto cache = Create(1, 8);
  for (int64_t block = 1; block < 9; ++block) FillBlock(*cache, block, 1);
  const int64_t before = queue_.counters().reads;
  // Whole ones and a begun one behind each other; a gap; one of which nothing is there yet.
  cache->BeginStep({{3, 64, 64}, {1, 64, 64}, {2, 64, 64}, {4, 5, 6}, {6, 64, 64}, {8, 0, 1}});
  ASSERT_TRUE(cache->LoadLayer(0, -1).ok());
  EXPECT_EQ(queue_.counters().reads - before, 2);
}

TEST_F(KvDiskTest, LeavesNoFileBehind) {
  const auto cache = Create(1, 2);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_F(KvDiskTest, ADirectoryThatTakesNoFileIsNamed) {
  KvDisk::Options options;
  options.shape = kShape;
  options.row_bytes = kRowBytes;
  options.num_blocks = 1;
  options.directory = dir_.File("none");
  const absl::Status status = KvDisk::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("none")));
}

}  // namespace
}  // namespace caravan
