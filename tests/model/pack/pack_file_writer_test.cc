#include "model/pack/pack_file_writer.h"

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "gtest/gtest.h"
#include "model/pack/file_hash.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

constexpr int64_t kMany = int64_t{1} << 30;

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()), text.size());
}

std::string Text(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 2654435761u >> 24);
  return text;
}

// Around the blocks that a disk writes, and the writer's buffers.
TEST(PackFileWriterTest, WritesAndHashesAnyNumberOfBytes) {
  const TempDir dir;
  const std::string path = dir.File("x.bin");
  constexpr size_t kMiB = size_t{1} << 20;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{4095}, size_t{4096}, size_t{4097},
                            8 * kMiB - 1, 8 * kMiB, 8 * kMiB + 1, 20 * kMiB + 5000}) {
    const std::string text = Text(size);
    for (const size_t step : {kMiB, 9 * kMiB}) {
      auto writer = *PackFileWriter::Create(path);
      for (size_t begin = 0; begin < size; begin += step) {
        ASSERT_TRUE(writer->Write(Bytes(absl::string_view(text).substr(begin, step))).ok());
      }
      EXPECT_EQ(writer->bytes(), static_cast<int64_t>(size));
      const absl::StatusOr<std::string> hash = writer->Commit();
      ASSERT_TRUE(hash.ok()) << hash.status();
      EXPECT_TRUE(*ReadFile(path, kMany) == text) << size;
      FileHash expected;
      expected.Add(Bytes(text));
      EXPECT_EQ(*hash, expected.Digest()) << size;
    }
  }
}

TEST(PackFileWriterTest, PadsWithZeros) {
  const TempDir dir;
  auto writer = *PackFileWriter::Create(dir.File("x.bin"));
  ASSERT_TRUE(writer->Write(Bytes("abc")).ok());
  ASSERT_TRUE(writer->PadTo(10000).ok());
  ASSERT_TRUE(writer->Write(Bytes("d")).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_TRUE(*ReadFile(dir.File("x.bin"), kMany) == "abc" + std::string(9997, '\0') + "d");
}

TEST(PackFileWriterTest, RefusesWhatIsNoFileBeforeAnythingIsWritten) {
  const TempDir dir;
  for (const std::string& path : {std::string(), dir.path()}) {
    const absl::Status status = PackFileWriter::Create(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << path << ": " << status;
    EXPECT_FALSE(FileExists(path + ".partial"));
  }
}

TEST(PackFileWriterTest, WithoutCommitNothingIsLeft) {
  const TempDir dir;
  {
    auto writer = *PackFileWriter::Create(dir.File("x.bin"));
    ASSERT_TRUE(writer->Write(Bytes(Text(9 << 20))).ok());
    EXPECT_TRUE(FileExists(dir.File("x.bin.partial")));
  }
  EXPECT_FALSE(FileExists(dir.File("x.bin.partial")));
  EXPECT_FALSE(FileExists(dir.File("x.bin")));
}

}  // namespace
}  // namespace caravan
