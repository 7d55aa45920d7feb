//! Products without vector instructions.

use std::ops::Range;

use super::layout::{Layout, SUPER, Scheme, block_at, half_at};
use super::{BLOCK, GROUP, PANEL, Rounded, Rows};

pub(super) fn plain(layout: Layout, rows: Rows, panel: &[u8], stretch: Range<usize>, tile: &mut [[f32; PANEL]]) {
    let inputs = layout.blocks * BLOCK;
    for (row, sums) in tile.iter_mut().enumerate() {
        for block in stretch.clone() {
            let at = block_at(layout, block);
            let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
            let x = &rows.bytes[row * inputs + block * BLOCK..][..BLOCK];
            let Rounded { scale: x_scale, sum: x_sum, whole, half } = rows.blocks[row * layout.blocks + block];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut products = [0i32; 2];
                for (input, x) in x.iter().enumerate() {
                    let (group, within) = (input / GROUP, input % GROUP);
                    let value = if layout.four_bits {
                        panel[at + (group % 4) * PANEL * GROUP + lane * GROUP + within] >> (group / 4 * 4) & 15
                    } else {
                        panel[at + group * PANEL * GROUP + lane * GROUP + within]
                    };
                    products[input / 16] += i32::from(value) * i32::from(*x);
                }
                let scales = at + layout.numbers();
                match layout.scheme {
                    Scheme::Plain => {
                        let offset = if layout.four_bits { 8 } else { 128 };
                        let product = products[0] + products[1] - offset * whole;
                        *sum += product as f32 * x_scale * half_at(panel, scales + 2 * lane);
                    }
                    Scheme::Minimum => {
                        let scale = half_at(panel, head + 2 * lane) * f32::from(panel[scales + lane]);
                        let minimum =
                            half_at(panel, head + 2 * (PANEL + lane)) * f32::from(panel[scales + PANEL + lane]);
                        *sum += (products[0] + products[1]) as f32 * x_scale * scale;
                        *sum -= minimum * x_sum;
                    }
                    Scheme::Halves => {
                        let unit = half_at(panel, head + 2 * lane);
                        for (part, of_x) in [half, whole - half].into_iter().enumerate() {
                            let scale = unit * f32::from(panel[scales + part * PANEL + lane] as i8);
                            *sum += (products[part] - 32 * of_x) as f32 * x_scale * scale;
                        }
                    }
                }
            }
        }
    }
}
