#ifndef CARAVAN_CLI_REPLY_PRINTER_H_
#define CARAVAN_CLI_REPLY_PRINTER_H_

// A reply on standard output as it grows: the thought dim on a terminal, the answer plain. Without
// a terminal the text alone, no escape codes.

#include "caravan/v1/jobs.pb.h"

namespace caravan {

/// Used by one thread. May print several replies one after another.
class ReplyPrinter {
 public:
  ReplyPrinter();
  ~ReplyPrinter() { EndLine(); }
  ReplyPrinter(const ReplyPrinter&) = delete;
  ReplyPrinter& operator=(const ReplyPrinter&) = delete;

  void Print(const v1::TextDelta& delta);

  /// Ends the line that was begun, if any.
  void EndLine();

 private:
  const bool styled_;
  bool at_line_start_ = true;
};

}  // namespace caravan

#endif  // CARAVAN_CLI_REPLY_PRINTER_H_
