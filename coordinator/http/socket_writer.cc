#include "coordinator/http/socket_writer.h"

#include <boost/asio/buffer.hpp>
#include <utility>

namespace caravan {

SocketWriter::SocketWriter(boost::asio::ip::tcp::socket* socket, absl::Duration timeout,
                           Events events)
    : socket_(socket),
      timeout_(timeout),
      events_(std::move(events)),
      deadline_(socket->get_executor(), [this] {
        if (!closed_) events_.on_failed();
      }) {}

void SocketWriter::Write(const std::string& bytes, std::shared_ptr<void> owner) {
  if (closed_ || bytes.empty()) return;
  waiting_ += bytes;
  unsent_bytes_ += bytes.size();
  if (!busy_) WriteSome(std::move(owner));
}

void SocketWriter::WriteSome(std::shared_ptr<void> owner) {
  if (written_ == writing_.size()) {
    writing_.clear();
    written_ = 0;
    std::swap(writing_, waiting_);
  }
  busy_ = true;
  deadline_.Set(timeout_, owner);
  socket_->async_write_some(
      boost::asio::buffer(writing_.data() + written_, writing_.size() - written_),
      [this, owner = std::move(owner)](const boost::system::error_code& error, size_t bytes) {
        busy_ = false;
        if (closed_) return;
        if (error) return events_.on_failed();
        OnWritten(bytes, owner);
      });
}

void SocketWriter::OnWritten(size_t bytes, std::shared_ptr<void> owner) {
  written_ += bytes;
  unsent_bytes_ -= bytes;
  if (on_progress_ != nullptr) on_progress_();
  if (closed_) return;
  if (busy_) return;  // on_progress_ wrote
  if (unsent_bytes_ > 0) return WriteSome(std::move(owner));
  deadline_.Clear();
  events_.on_empty();
}

void SocketWriter::Close() {
  closed_ = true;
  on_progress_ = nullptr;
  deadline_.Cancel();
}

}  // namespace caravan
