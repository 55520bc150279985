#include "cli/reply_printer.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"

namespace caravan {

ReplyPrinter::ReplyPrinter() : styled_(::isatty(STDOUT_FILENO) == 1) {}

void ReplyPrinter::Print(const v1::TextDelta& delta) {
  if (delta.text().empty()) return;
  const bool dim = styled_ && delta.part() == v1::TEXT_PART_THOUGHT;
  const std::string text = dim ? absl::StrCat("\033[2m", delta.text(), "\033[0m") : delta.text();
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  at_line_start_ = delta.text().back() == '\n';
}

void ReplyPrinter::EndLine() {
  if (!at_line_start_) std::fputc('\n', stdout);
  at_line_start_ = true;
  std::fflush(stdout);
}

}  // namespace caravan
