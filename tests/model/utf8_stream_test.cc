#include "model/utf8_stream.h"

#include "gtest/gtest.h"

namespace caravan {
namespace {

std::string Lossy(absl::string_view bytes) {
  Utf8Stream stream;
  std::string text = stream.Push(bytes);
  return text + stream.Flush();
}

TEST(Utf8StreamTest, HoldsBackACharacterUntilItIsWhole) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.Push("\x99"), "");
  EXPECT_EQ(stream.Push("\x82"
                        "b"),
            "\xF0\x9F\x99\x82"
            "b");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(Utf8StreamTest, FlushReplacesWhatWasLeftUnfinishedOnce) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Push("\xF0\x9F\x99"), "");
  EXPECT_EQ(stream.Flush(), "\uFFFD");
  EXPECT_EQ(stream.Push("ok"), "ok");
  EXPECT_EQ(stream.Flush(), "");
}

// The examples of Unicode 15.0, tables 3-8 to 3-11.
TEST(Utf8StreamTest, ReplacesEachMaximalSubpartOnce) {
  EXPECT_EQ(Lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                  "A"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
  EXPECT_EQ(Lossy("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                  "A"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
  EXPECT_EQ(Lossy("\xF4\x91\x92\x93\xFF"
                  "A\x80\xBF"
                  "B"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"
            "A\uFFFD\uFFFD"
            "B");
  EXPECT_EQ(Lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                  "A"),
            "\uFFFD\uFFFD\uFFFD\uFFFD"
            "A");
}

TEST(Utf8StreamTest, CutsDoNotChangeTheText) {
  const std::string bytes = "x\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x99\x82\xE4\xBD\xFF\xC3(\xF0\x9F\x99";
  const std::string whole = Lossy(bytes);
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); ++second) {
      Utf8Stream stream;
      std::string text = stream.Push(bytes.substr(0, first));
      text += stream.Push(bytes.substr(first, second - first));
      text += stream.Push(bytes.substr(second));
      EXPECT_EQ(text + stream.Flush(), whole) << first << " " << second;
    }
  }
}

TEST(Utf8StreamTest, FindsTheFirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8(""), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8(absl::string_view("a\0\x7F", 3)), std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("\u0080\u07FF\u0800\uD7FF\uE000\uFFFF\U00010000\U0010FFFF"),
            std::nullopt);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\u00E9\xE4\xBD"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\xF5\x80\x80\x80"), 0u);
}

}  // namespace
}  // namespace caravan
