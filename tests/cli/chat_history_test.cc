#include "cli/chat_history.h"

#include <sys/stat.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

mode_t ModeOf(const std::string& path) {
  struct stat file = {};
  EXPECT_EQ(::stat(path.c_str(), &file), 0) << path;
  return file.st_mode & 0777;
}

TEST(ChatHistoryTest, IsMadeForItsOwnerOnlyAndKept) {
  const TempDir dir;
  const std::string path = dir.File("state/caravan/chat_history");
  auto history = ChatHistory::Open(path);
  ASSERT_TRUE(history.ok()) << history.status();
  EXPECT_THAT(history->lines(), IsEmpty());
  EXPECT_EQ(ModeOf(path), 0600u);
  EXPECT_EQ(ModeOf(dir.File("state")), 0700u);
  ASSERT_TRUE(history->Append("one").ok());
  ASSERT_TRUE(history->Append("\xe4\xba\x8c").ok());
  // Another chat goes on in the same file.
  auto other = ChatHistory::Open(path);
  ASSERT_TRUE(other.ok()) << other.status();
  ASSERT_TRUE(other->Append("three").ok());
  ASSERT_TRUE(history->Append("four").ok());
  EXPECT_THAT(ChatHistory::Open(path)->lines(),
              ElementsAre("one", "\xe4\xba\x8c", "three", "four"));
}

TEST(ChatHistoryTest, AFileThatOthersCouldReadIsClosedToThem) {
  const TempDir dir;
  const std::string path = dir.Write("history", "one\n");
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  ASSERT_TRUE(ChatHistory::Open(path).ok());
  EXPECT_EQ(ModeOf(path), 0600u);
}

TEST(ChatHistoryTest, AFileThatHasGrownIsCutToItsNewestLines) {
  const TempDir dir;
  std::string text;
  const std::string filler(500, 'x');
  for (int i = 0; i < 3000; ++i) absl::StrAppend(&text, i, filler, "\n");
  const std::string path = dir.Write("history", text);
  const auto history = ChatHistory::Open(path);
  ASSERT_TRUE(history.ok()) << history.status();
  ASSERT_EQ(history->lines().size(), ChatHistory::kMaxLines);
  EXPECT_EQ(history->lines().front(), absl::StrCat(2000, filler));
  EXPECT_EQ(history->lines().back(), absl::StrCat(2999, filler));
  EXPECT_EQ(ReadFile(path, 1 << 30)->size(), ChatHistory::kMaxLines * (4 + filler.size() + 1));
  EXPECT_EQ(ModeOf(path), 0600u);
}

TEST(ChatHistoryTest, APathThatCannotBeIsNamed) {
  const TempDir dir;
  const std::string file = dir.Write("file", "");
  const auto history = ChatHistory::Open(file + "/history");
  ASSERT_FALSE(history.ok());
  EXPECT_THAT(std::string(history.status().message()), HasSubstr(file));
  EXPECT_FALSE(ChatHistory::Open(dir.path()).ok());
}

TEST(ChatHistoryTest, TheDefaultPathFollowsXdg) {
  ::setenv("HOME", "/home/somebody", 1);
  ::unsetenv("XDG_STATE_HOME");
  EXPECT_EQ(ChatHistory::DefaultPath(), "/home/somebody/.local/state/caravan/chat_history");
  ::setenv("XDG_STATE_HOME", "relative", 1);
  EXPECT_EQ(ChatHistory::DefaultPath(), "/home/somebody/.local/state/caravan/chat_history");
  ::setenv("XDG_STATE_HOME", "/state", 1);
  EXPECT_EQ(ChatHistory::DefaultPath(), "/state/caravan/chat_history");
  ::unsetenv("XDG_STATE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(ChatHistory::DefaultPath(), "");
}

}  // namespace
}  // namespace caravan
